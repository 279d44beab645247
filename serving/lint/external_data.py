"""Where the weights of an ONNX file lie, and whether ONNX Runtime will read them there.

Each case was tried with ONNX Runtime 1.31: it reads weights beside or below the file, through hard
links too, and through symbolic links as long as they end in the folder that holds the ONNX file
once its own links are resolved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iblip.serving.lint.reading import Model


def onnx_installed() -> bool:
    """Whether ONNX files can be read here."""
    return find_spec("onnx") is not None


def onnx_files(model: Model) -> Iterator[Path]:
    """The ONNX file of each version, if ONNX Runtime runs the model."""
    if model.backend == "onnxruntime" and model.config is not None:
        name = model.config.default_model_filename or "model.onnx"
        yield from (path for folder in model.versions if (path := folder / name).is_file())


def external_faults(path: Path) -> Iterator[str]:
    """Why ONNX Runtime will not read the weights of an ONNX file; one message for each location."""
    if not onnx_installed():
        return
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        yield "it is not an ONNX file"
        return
    ends: dict[str, int] = {}
    for tensor in _external_tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        location = entries.get("location", "")
        ends[location] = max(end, ends.get(location, 0))
    for location, end in ends.items():
        fault = _find_fault(path, location, end)
        if fault:
            yield f"its weights are in {location!r}: {fault}"


def _external_tensors(graph: Any) -> Iterator[Any]:
    """The tensors of a graph and its subgraphs whose values lie in other files."""
    from onnx import TensorProto

    external = TensorProto.EXTERNAL
    yield from (tensor for tensor in graph.initializer if tensor.data_location == external)
    for node in graph.node:
        for attribute in node.attribute:
            subgraphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from _external_tensors(subgraph)


def _find_fault(path: Path, location: str, end: int) -> str | None:
    if Path(location).is_absolute():
        return "ONNX Runtime refuses absolute paths"
    weights = path.parent / location
    home = path.resolve().parent
    if not weights.is_file():
        return "no such file"
    if not Path(os.path.realpath(weights)).is_relative_to(home):
        return f"that is outside of {home}, the folder of the ONNX file"
    size = weights.stat().st_size
    return f"it has {size} bytes; expected {end}" if size < end else None
