"""Opens the runner of a component for the engine that the build was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iblip.engines.free_memory import check_free_memory
from iblip.engines.types import Runner
from iblip.export.artifact.manifest import ComponentRecord, EngineRecord, GraphRecord, Manifest
from iblip.export.errors import BuildDirectoryError, EngineError, OptionError

MOST_THREADS = 1024
"""Engines start as many as they are told, and tens of thousands take minutes or all memory."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where on this machine a runner runs.

    Attributes:
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.
        device: the GPU's number, from 0, if the engine runs on one.

    Raises:
        OptionError: `threads` is out of range.
    """

    threads: int | None = None
    device: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise OptionError(
                f"threads is {self.threads}; expected 1 to {MOST_THREADS}, or none given for what "
                "suits the graph and the machine. More than there are cores only cost time."
            )


Opener = Callable[[Path, EngineRecord, GraphRecord, Place], Runner]


def open_runner(
    directory: Path,
    manifest: Manifest,
    component: str,
    graph: str = "model",
    *,
    threads: int | None = None,
    device: int = 0,
) -> Runner:
    """A runner of one graph of a build, not yet entered.

    Args:
        directory: of the build.
        manifest: of the same build.
        component: `vision_encoder`, `qformer` or `language_model`.
        graph: its name within the component.
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.
        device: the GPU's number, from 0, if the engine runs on one.

    Raises:
        BuildDirectoryError: the build has no such component or graph.
        OptionError: `threads` is out of range.
        EngineError: the engine that it was built for cannot run in this process, or its GPU has
            too little free memory.
    """
    record = _find_record(manifest, component, graph)
    opener = OPENERS.get(record.engine.kind)
    if opener is None:
        raise EngineError(
            f"{component} was built for the engine {record.engine.kind!r}; "
            f"this version runs {', '.join(OPENERS)}. Build it with --engine onnxruntime."
        )
    place = Place(threads=threads, device=device)
    check_free_memory(manifest, component, device)
    path = directory / record.engine.files[graph]
    return opener(path, record.engine, record.graphs[graph], place)


def _find_record(manifest: Manifest, component: str, graph: str) -> ComponentRecord:
    record = manifest.components.get(component)
    if record is None:
        has = ", ".join(manifest.components)
        raise BuildDirectoryError(f"the build has no component {component!r}; it has {has}")
    if graph not in record.graphs or graph not in record.engine.files:
        has = ", ".join(record.graphs)
        raise BuildDirectoryError(f"{component} has no graph {graph!r}; it has {has}")
    return record


def _open_onnxruntime(path: Path, engine: EngineRecord, graph: GraphRecord, place: Place) -> Runner:
    from iblip.engines.compiled import provider_cache
    from iblip.engines.onnxruntime.providers import Placement
    from iblip.engines.onnxruntime.runner import OnnxRuntimeRunner
    from iblip.engines.tensorrt.profile import profile_from_json

    profiles = engine.details.get("profiles")
    shapes = profile_from_json(profiles[0]).all_shapes(graph.contract) if profiles else {}
    placement = Placement(
        kind=engine.kind,
        device=place.device,
        shapes=shapes,
        cache=provider_cache(engine.kind, graph.digest) if shapes else None,
        captures=engine.kind == "onnxruntime-cuda",
    )
    return OnnxRuntimeRunner(path, graph.contract, threads=place.threads, placement=placement)


def _open_plan(path: Path, engine: EngineRecord, graph: GraphRecord, place: Place) -> Runner:
    from iblip.engines.compiled import COMPILERS, provider_cache
    from iblip.engines.tensorrt.runner import TensorRTRunner

    # TensorRT's plans have all their kernels; those of TensorRT-RTX are compiled for the GPU.
    compiles = engine.kind in COMPILERS
    cache = provider_cache(engine.kind, graph.digest) if compiles else None
    return TensorRTRunner(path, graph.contract, engine, device=place.device, cache=cache)


OPENERS: Mapping[str, Opener] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": _open_onnxruntime,
    "onnxruntime-tensorrt": _open_onnxruntime,
    "onnxruntime-tensorrt-rtx": _open_onnxruntime,
    "tensorrt": _open_plan,
    "tensorrt-rtx": _open_plan,
}
"""Engine kind to the function that opens its runner."""
