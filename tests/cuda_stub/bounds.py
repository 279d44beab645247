"""Upper bounds of what the demos do to a GPU, counted over the stubs. Lower them as graphs improve.

`pytest -m cuda_stub tests/cuda_stub -s` prints what was counted beside each bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRODUCTS = frozenset(
    {
        "Attention",
        "BiasGelu",
        "BiasSoftmax",
        "Conv",
        "FastGelu",
        "FusedConv",
        "FusedMatMul",
        "Gelu",
        "Gemm",
        "GroupQueryAttention",
        "LayerNormalization",
        "MatMul",
        "MatMulNBits",
        "MultiHeadAttention",
        "RMSNormalization",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Softmax",
    }
)
"""Operators that work on a model's activations: never on the CPU."""

SHAPE_ARITHMETIC = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Range",
        "ReduceMax",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
"""Operators that ONNX Runtime may leave to the CPU, where they compute sizes of tensors."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Nodes of one graph outside the GPU, and nodes that copy between CPU and GPU."""

    on_cpu: int
    memcpy: int


PLACEMENT: Mapping[tuple[str, str], Placement] = {}
"""By language model's family (or `""` for all) and graph."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decode step of one sequence: calls to the device.

    Attributes:
        per_layer: kernels and library routines a layer of the decoder, without those below.
        launches: kernels and library routines outside the layers.
        copies: in any direction.
        synchronizations: waits of the host.
    """

    per_layer: int
    launches: int
    copies: int
    synchronizations: int


STEPS: Mapping[str, Step] = {}
"""By language model's family."""
