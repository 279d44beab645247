"""`placement`: on which provider of ONNX Runtime each node of each served graph lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from iblip.engines.compiled import provider_cache
from iblip.engines.onnxruntime.providers import CPU_PROVIDER, PROVIDERS, Placement
from iblip.engines.onnxruntime.session import check_placement, load_onnxruntime, offer_providers
from iblip.engines.tensorrt.profile import profile_from_json
from iblip.export.artifact.manifest import ComponentRecord
from iblip.export.errors import EngineError
from iblip.export.graph.onnxruntime_values import session_from_onnx
from iblip.serving.proving.record import Fact
from iblip.serving.proving.subject import NothingToMeasureError, Subject

RECORDED = "session.record_ep_graph_assignment_info"
"""ONNX Runtime's setting that has it remember where it puts each node."""

HEAVY = frozenset(
    {
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention"),
        *("Conv", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "FusedGemm"),
        *("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"),
        *("RMSNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "FastGelu", "Gelu"),
    }
)
"""Operators that a GPU must run: on the CPU they cost more than all the rest."""

COPIES = ("MemcpyToHost", "MemcpyFromHost")
"""Nodes that ONNX Runtime inserts where a tensor changes sides."""

NOT_SERVED = ("language_model/decoder",)
"""Graphs of a build that no server of ONNX Runtime opens."""


def check_placement_of_nodes(subject: Subject) -> Iterator[Fact]:
    """For each graph that ONNX Runtime serves: nodes by provider, heavy ones on the CPU, copies."""
    looked = False
    for component, record in subject.manifest.components.items():
        kind = record.engine.kind
        if kind not in PROVIDERS:
            yield Fact(name=component, value=f"on {kind}, which places nothing elsewhere")
            continue
        for graph in record.graphs:
            if f"{component}/{graph}" not in NOT_SERVED:
                looked = True
                yield from _look_at(subject.directory, component, record, graph)
    if not looked:
        raise NothingToMeasureError("no component runs on ONNX Runtime")


def _look_at(
    directory: Path, component: str, record: ComponentRecord, graph: str
) -> Iterator[Fact]:
    title, kind = f"{component}/{graph}", record.engine.kind
    try:
        placed = _place(directory, record, graph)
    except EngineError as error:
        yield Fact(name=title, value=str(error), wrong=True)
        return
    for provider, operators in placed.items():
        name = f"{title}: nodes on {provider}"
        yield Fact(name=name, value=sum(operators.values()))
    if PROVIDERS[kind].name == CPU_PROVIDER:
        return
    here = placed.get(CPU_PROVIDER, Counter())
    heavy = {operator: count for operator, count in here.items() if operator in HEAVY}
    words = ", ".join(f"{count} {operator}" for operator, count in heavy.items())
    yield Fact(
        name=f"{title}: products and attention on the CPU",
        value=sum(heavy.values()),
        limit=0,
        where=words,
    )
    copies = sum(operators[name] for operators in placed.values() for name in COPIES)
    yield Fact(name=f"{title}: nodes that copy between CPU and GPU", value=copies)


def _place(directory: Path, record: ComponentRecord, graph: str) -> dict[str, Counter[str]]:
    """Counts the operators of an opened graph, by provider."""
    ort = load_onnxruntime()
    entry, engine = record.graphs[graph], record.engine
    profiles = engine.details.get("profiles")
    shapes = profile_from_json(profiles[0]).all_shapes(entry.contract) if profiles else {}
    placement = Placement(
        kind=engine.kind,
        shapes=shapes,
        cache=provider_cache(engine.kind, entry.digest) if shapes else None,
    )
    check_placement(placement)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(RECORDED, "1")
    path = directory / engine.files[graph]
    try:
        session = session_from_onnx(path, options, offer_providers(ort, options, placement))
        placed: dict[str, Counter[str]] = {}
        for assigned in session.get_provider_graph_assignment_info():
            operators = placed.setdefault(assigned.ep_name, Counter())
            operators.update(node.op_type for node in assigned.get_nodes())
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(f"ONNX Runtime cannot load {path} ({error})") from error
    return placed
