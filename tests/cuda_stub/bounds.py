"""Upper bounds of what the demos do to a GPU, counted over the stubs. Lower them as graphs improve.

`make test-cuda-stub` prints what was counted beside each bound.
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


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Nodes of one graph on the CPU, and nodes that copy between it and the GPU."""

    on_cpu: int
    memcpy: int


OUTSIDE: Mapping[str, Outside] = {
    "vision_encoder/model": Outside(on_cpu=6, memcpy=0),
    "qformer/model": Outside(on_cpu=13, memcpy=0),
    "language_model/embed_tokens": Outside(on_cpu=0, memcpy=0),
    "language_model/encoder": Outside(on_cpu=7, memcpy=0),
    "language_model/batched_decoder of llama": Outside(on_cpu=5, memcpy=0),
    "language_model/batched_decoder of opt": Outside(on_cpu=11, memcpy=0),
    "language_model/batched_decoder of t5": Outside(on_cpu=5, memcpy=0),
}
"""By component and graph, and by the language model's family where that makes a difference."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Calls to the device of one decode step of one request.

    Attributes:
        per_layer: kernels and library routines, by the decoder's layers; those outside the layers
            are shared out among them. None where the step is one graph launch.
        copies: in any direction.
        synchronizations: waits of the host for the device.
    """

    per_layer: float
    copies: int
    synchronizations: int


STEPS: Mapping[str, Step] = {
    "llama": Step(per_layer=0, copies=0, synchronizations=1),
    "opt": Step(per_layer=0, copies=0, synchronizations=1),
    "t5": Step(per_layer=0, copies=0, synchronizations=1),
}
"""By the family of the language model."""

LAYERS: Mapping[str, Mapping[str, int]] = {
    "vision_encoder": {"fp16": 10, "bf16": 10, "lavis": 12},
    "qformer": {"fp16": 20, "bf16": 20, "lavis": 20},
}
"""Operators of the largest layer on CUDA, by component and precision. A layer of a Q-Former that
reads instructions has two attentions and two multilayer perceptrons; its first makes the masks."""
