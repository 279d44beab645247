"""bfloat16 on ONNX Runtime's CPU provider: what is rounded, and what is not."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from iblip.export.graph.onnxruntime_values import run, session_from_onnx

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
graph (bfloat16[batch, 4] x, bfloat16[4, 2] weight) =>
    (bfloat16[4, batch] y, bfloat16[batch, 2] z) {
    half = Softplus(x)
    product = MatMul(half, weight)
    z = Tanh(product)
    y = Transpose<perm = [1, 0]>(half)
}"""


@pytest.fixture
def graph(tmp_path):
    model = ir.from_onnx_text(GRAPH)
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    weight = np.random.default_rng(0).standard_normal((4, 2)).astype(ml_dtypes.bfloat16)
    model.graph.initializers["weight"].const_value = ir.tensor(weight, name="weight")
    for node in model.graph:
        node.outputs[0].dtype = ir.DataType.BFLOAT16
    ir.save(model, tmp_path / "graph.onnx", external_data="graph.weights", size_threshold_bytes=0)
    return tmp_path / "graph.onnx", weight


def rounded(values):
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_each_operator_computes_in_float32_and_rounds(graph):
    path, weight = graph
    with pytest.raises(Exception, match="bfloat16"):
        onnxruntime.InferenceSession(path)
    session = session_from_onnx(path, onnxruntime.SessionOptions(), ["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(ml_dtypes.bfloat16)
    found = run(session, ["y", "z"], {"x": x})
    half = rounded(np.log1p(np.exp(x.astype(np.float32))))
    wanted = rounded(np.tanh(rounded(half @ weight.astype(np.float32))))
    assert {array.dtype.name for array in found.values()} == {"bfloat16"}
    np.testing.assert_array_equal(found["y"].astype(np.float32), half.T)
    np.testing.assert_allclose(found["z"].astype(np.float32), wanted, rtol=2**-8)


def test_a_graph_without_it_fails_as_before(tmp_path):
    text = GRAPH.replace("bfloat16", "float").replace("Softplus", "Nothing")
    model = ir.from_onnx_text(text)
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    model.graph.initializers["weight"].const_value = ir.tensor(
        np.ones((4, 2), np.float32), name="weight"
    )
    ir.save(model, tmp_path / "graph.onnx")
    with pytest.raises(Exception, match="Nothing"):
        session_from_onnx(
            tmp_path / "graph.onnx", onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
        )
