"""Where ONNX Runtime put a graph's nodes: on the provider that was asked for, or on the CPU.

A node that a provider has no kernel for runs on the CPU, with a copy of its tensors either way at
every run. ONNX Runtime says so in a warning that it also writes about the arithmetic of shapes,
which belongs there; so its warnings are hidden, and its record of the nodes is read instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iblip.engines.onnxruntime.providers import CPU_PROVIDER, Placement
from iblip.export.errors import EngineError

logger = logging.getLogger(__name__)

RECORDED = "session.record_ep_graph_assignment_info"
"""ONNX Runtime's setting that has a session record where its nodes are."""

HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "GroupQueryAttention",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Attention and products: what a GPU is asked for. On the CPU they are refused."""

ARITHMETIC = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Greater",
        "Identity",
        "Less",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Range",
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
"""What shapes are computed with. ONNX Runtime leaves a few of each graph to the CPU on purpose."""

SHOWN = 3
"""How many nodes of an operator a message names."""

Nodes = Mapping[str, Sequence[str]]
"""Names of nodes by operator."""


def check_assignment(path: Path, session: Any, placement: Placement) -> None:
    """Refuses a session that would compute on the CPU what was asked of a GPU.

    Nodes that are neither heavy nor arithmetic of shapes are named in a warning.

    Args:
        path: of the graph, for messages.
        session: an `onnxruntime.InferenceSession` that has recorded its assignment (`RECORDED`).
        placement: what was asked for.

    Raises:
        EngineError: attention or a product is on the CPU.
    """
    on_cpu = nodes_on_cpu(session)
    provider = placement.provider.name
    heavy = {operator: names for operator, names in on_cpu.items() if operator in HEAVY}
    if heavy:
        raise EngineError(
            f"{provider} would leave {_list(heavy)} of {path} to the CPU, because it has no kernel "
            "for them in their dtypes; each would copy its tensors both ways at every run. Build "
            "the component in fp16 or bf16, or with --engine onnxruntime for the CPU."
        )
    odd = {operator: names for operator, names in on_cpu.items() if operator not in ARITHMETIC}
    if odd:
        logger.warning(
            "%s leaves %s of %s to the CPU, and copies their tensors at every run",
            provider,
            _list(odd),
            path,
        )


def nodes_on_cpu(session: Any) -> Nodes:
    """The nodes that a session runs on the CPU, by operator."""
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == CPU_PROVIDER:
            for node in part.get_nodes():
                nodes.setdefault(node.op_type, []).append(node.name)
    return nodes


def _list(nodes: Nodes) -> str:
    """`2 MatMul (a, b) and 5 Softmax (c, d, e, …)`."""
    return " and ".join(
        f"{len(names)} {operator} ({', '.join(_shorten(names))})"
        for operator, names in sorted(nodes.items())
    )


def _shorten(names: Sequence[str]) -> Iterable[str]:
    return names if len(names) <= SHOWN else (*names[:SHOWN], "…")
