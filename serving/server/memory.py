"""What a build takes of a machine's memory when it is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iblip.engines.kinds import OPENVINO
from iblip.engines.memory import bytes_a_position
from iblip.export.artifact.manifest import Manifest
from iblip.export.messages import size_text

PROCESSES = 384 << 20
"""Bytes of the server and its processes beside weights and caches: 240 MiB as they start (a demo
checkpoint, proportional set size of all of them), the rest when a model of 7 B has answered."""

DECODER = "batched_decoder"


@dataclass(frozen=True, kw_only=True)
class ServingMemory:
    """Bytes that a server wants.

    Attributes:
        weights: of the graphs that are served, as they lie in memory.
        position: keys and values of one position of one slot.
        slots: of the language model.
        positions: of a slot.
    """

    weights: int
    position: int
    slots: int
    positions: int

    @property
    def caches(self) -> int:
        """Keys and values when every slot is full; they are taken as sequences grow."""
        return self.position * self.slots * self.positions

    @property
    def least(self) -> int:
        """Bytes of memory before the first request."""
        return self.weights + PROCESSES

    @property
    def most(self) -> int:
        """Bytes of memory when every slot is full."""
        return self.least + self.caches

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, in bytes."""
        return {
            "weights": self.weights,
            "processes": PROCESSES,
            "bytes_a_position": self.position,
            "slots": self.slots,
            "positions": self.positions,
            "key_values_when_full": self.caches,
            "least": self.least,
            "most": self.most,
            "available": available(),
        }

    def __str__(self) -> str:
        return (
            f"{size_text(self.least)} with its weights loaded, and {size_text(self.position)} for"
            f" every position of a sequence: {size_text(self.most)} if all {self.slots} slots reach"
            f" {self.positions:,} positions"
        )

    @property
    def advice(self) -> str | None:
        """What to say where this machine has less; `None` where it suffices."""
        free = available()
        if free is None or self.most <= free:
            return None
        if self.least > free:
            return f"memory: it takes {self}. {size_text(free)} are free here: it may not load."
        return (
            f"memory: it takes {self}. {size_text(free)} are free here: fewer slots or positions"
            " (`--slots` and `--max-length` of `iblip build`, or `slots` and `max_length` in"
            " instructblip/config.pbtxt) keep it within them."
        )


def is_estimated(engines: Mapping[str, str], precisions: Mapping[str, str]) -> bool:
    """Whether `ServingMemory` holds: on ONNX Runtime on a CPU, and on OpenVINO but for fp16.

    OpenVINO keeps about as much memory of its own, of fp16 twice as much (decisions 52 and 53). The
    files of the weights, which it keeps mapped, are not counted: the system takes them back.

    Args:
        engines: kind of engine by component.
        precisions: keys of `export.precision.DTYPES`, by component.
    """
    return all(
        kind == "onnxruntime" or (kind == OPENVINO and precisions[name] != "fp16")
        for name, kind in engines.items()
    )


def memory_of_build(directory: Path, manifest: Manifest) -> ServingMemory | None:
    """Of a build; `None` where it is not known (`is_estimated`), or graphs cannot be read here: a
    server needs no `onnx`, and tells itself what is missing of a build."""
    records = manifest.components
    graphs = {
        directory / graph.path
        for record in records.values()
        for name, graph in record.graphs.items()
        if name != "decoder"
    }
    language_model = records.get("language_model")
    decoder = language_model and language_model.graphs.get(DECODER)
    engines = {name: record.engine.kind for name, record in records.items()}
    precisions = {name: record.precision for name, record in records.items()}
    if not decoder or not is_estimated(engines, precisions) or find_spec("onnx") is None:
        return None
    if not all(path.is_file() for path in graphs):
        return None
    try:
        loaded = loaded_by_place(graphs)
    except Exception:  # protobuf's or a number's: `iblip doctor` says what is wrong with the graph
        return None
    return ServingMemory(
        weights=sum(loaded.values()),
        position=bytes_a_position(decoder.contract),
        slots=manifest.limits.slots,
        positions=manifest.limits.max_length,
    )


def loaded_by_place(graphs: Iterable[Path]) -> dict[tuple[Path, int], int]:
    """Bytes in memory of every weight that the graphs read from files, by file and offset.

    On a CPU; the factors are those of `export.estimate.IN_MEMORY`.
    """
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    found = {}
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        scales = {node.input[2] for node in model.graph.node if node.op_type == "MatMulNBits"}
        for tensor in model.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if "length" in place:
                key = path.parent / place["location"], int(place.get("offset", 0))
                times = 3 if tensor.name in scales else 2 if tensor.data_type in halves else 1
                found[key] = int(place["length"]) * times
    return found


def available() -> int | None:
    """Bytes that this machine can give to new processes; `None` where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) for name, _, value in (ln.partition(":") for ln in lines)}
    return sizes["MemAvailable"] * 1024
