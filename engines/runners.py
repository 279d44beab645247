"""Opens what runs a component, by the engine that its build was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from engines.types import Runner
from export.contract import Contract
from export.errors import BuildDirectoryError, EngineError
from export.manifest import ComponentRecord, EngineRecord, Manifest

Opener = Callable[[Path, EngineRecord, Contract, int | None], Runner]


def open_runner(
    directory: Path,
    manifest: Manifest,
    component: str,
    graph: str = "model",
    *,
    threads: int | None = None,
) -> Runner:
    """A runner of one graph of a build, not yet entered.

    Args:
        directory: of the build.
        manifest: of the same build.
        component: `vision_encoder`, `qformer` or `language_model`.
        graph: its name within the component.
        threads: for one operator, on a CPU; `None` takes one per core this process may use.

    Raises:
        BuildDirectoryError: the build has no such component or graph.
        EngineError: the engine that it was built for cannot run in this process.
    """
    record = _record(manifest, component, graph)
    opener = OPENERS.get(record.engine.kind)
    if opener is None:
        raise EngineError(
            f"{component} was built for the engine {record.engine.kind!r}; "
            f"this version runs {', '.join(OPENERS)}. Build it with --engine onnxruntime."
        )
    contract = record.graphs[graph].contract
    return opener(directory / record.engine.files[graph], record.engine, contract, threads)


def _record(manifest: Manifest, component: str, graph: str) -> ComponentRecord:
    record = manifest.components.get(component)
    if record is None:
        has = ", ".join(manifest.components)
        raise BuildDirectoryError(f"the build has no component {component!r}; it has {has}")
    if graph not in record.graphs or graph not in record.engine.files:
        has = ", ".join(record.graphs)
        raise BuildDirectoryError(f"{component} has no graph {graph!r}; it has {has}")
    return record


def _onnxruntime(
    path: Path, engine: EngineRecord, contract: Contract, threads: int | None
) -> Runner:
    from engines.onnxruntime.providers import Placement
    from engines.onnxruntime.runner import OnnxRuntimeRunner
    from engines.tensorrt.profile import profile_from_json

    profiles = engine.details.get("profiles")
    shapes = {} if not profiles else profile_from_json(profiles[0]).all_shapes(contract)
    placement = Placement(kind=engine.kind, shapes=shapes)
    return OnnxRuntimeRunner(path, contract, threads=threads, placement=placement)


def _plan(path: Path, engine: EngineRecord, contract: Contract, threads: int | None) -> Runner:
    from engines.selection import nvidia_driver

    driver = "" if nvidia_driver() else " (nor is there an NVIDIA driver on this machine)"
    raise EngineError(
        f"{path} is a plan for TensorRT, which this version cannot run in its own process{driver}. "
        "Serve it where its TensorRT version and GPU are, or build with --engine onnxruntime."
    )


OPENERS: Mapping[str, Opener] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime,
    "onnxruntime-tensorrt": _onnxruntime,
    "onnxruntime-tensorrt-rtx": _onnxruntime,
    "tensorrt": _plan,
    "tensorrt-rtx": _plan,
}
"""Engine kind to what opens it."""
