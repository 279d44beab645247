"""What a graph reads of its weights."""

from __future__ import annotations

import onnx

from iblip.export.weights.read_by_graph import weights_read

GRAPH = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
sum (int64[1] ids, float[1, 4] x) => (float[1, 4] y, float[1, 3] z, float[1, 4] w)
<float[9, 4] table = {1}, float[3, 4] turned = {1}, float[4, 4] straight = {1}, float[4] bias = {1},
 uint8[6, 1, 16] packed = {1}, float[6] scales = {1}>
{
    row = Gather (table, ids)
    product = MatMul (row, straight)
    y = Add (product, bias)
    t = Transpose <perm = [1, 0]> (turned)
    z = MatMul (y, t)
    q = com.microsoft.MatMulNBits <K = 4, N = 6, bits = 4, block_size = 32> (x, packed, scales)
    w = MatMul (x, straight)
}
"""


def test_matrices_are_found_behind_what_stands_between_and_tables_are_left_out(tmp_path):
    model = onnx.parser.parse_model(GRAPH)
    for tensor in model.graph.initializer:
        sizes = {"table": 144, "turned": 48, "straight": 64, "bias": 16, "packed": 96, "scales": 24}
        size = sizes[tensor.name]
        tensor.ClearField("float_data")
        tensor.ClearField("int32_data")
        tensor.raw_data = bytes(size)
    onnx.save(model, tmp_path / "model.onnx")
    found = weights_read(tmp_path / "model.onnx")
    assert found.products == ((4, 3, 1), (4, 4, 2), (4, 6, 1))
    assert found.bytes == 48 + 64 + 16 + 96 + 24
    assert found.factors == 12 + 32 + 24
