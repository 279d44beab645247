"""Whether products of 8-bit integers saturate on this processor by default."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def integers_saturate() -> bool:
    """Whether ONNX Runtime's default MatMul of 8-bit integers is inexact on this processor.

    Without VNNI its kernel adds pairs of products in 16 bits, which saturate. Sessions are opened
    with `EXACT_INTEGERS`, which chooses another kernel. OpenVINO's saturates in the same way, and
    it has no such setting.
    """
    import onnx_ir as ir
    import onnxruntime

    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        graph (uint8[4, 64] x, int8[64, 64] weight) => (int32[4, 64] y) {
            y = MatMulInteger(x, weight)
        }"""
    )
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    weight = np.full((64, 64), 127, np.int8)
    model.graph.initializers["weight"].const_value = ir.tensor(weight, name="weight")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (product,) = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})
    return bool((product != 64 * 127 * 255).any())
