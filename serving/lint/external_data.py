"""Where the weights of an ONNX file lie, and whether ONNX Runtime will read them there.

ONNX Runtime 1.31 was asked about each case: weights beside the file or below it are read, through
hard links too, and through symbolic ones as long as they end in the folder in which the ONNX file
itself really lies.
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
    """The ONNX file of each of a model's versions, where ONNX Runtime runs it."""
    if model.backend == "onnxruntime" and model.config is not None:
        name = model.config.default_model_filename or "model.onnx"
        yield from (path for one in model.versions if (path := one / name).is_file())


def external_faults(path: Path) -> Iterator[str]:
    """Why ONNX Runtime will not read the weights of an ONNX file; one message a place of them."""
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
    for tensor in _tensors(model.graph):
        told = {entry.key: entry.value for entry in tensor.external_data}
        end = int(told.get("offset", 0)) + int(told.get("length", 0))
        location = told.get("location", "")
        ends[location] = max(end, ends.get(location, 0))
    for location, end in ends.items():
        fault = _fault(path, location, end)
        if fault:
            yield f"its weights are in {location!r}: {fault}"


def _tensors(graph: Any) -> Iterator[Any]:
    """Tensors whose values lie in other files, of a graph and of those inside its nodes."""
    from onnx import TensorProto

    yield from (one for one in graph.initializer if one.data_location == TensorProto.EXTERNAL)
    for node in graph.node:
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for one in inner:
                yield from _tensors(one)


def _fault(path: Path, location: str, end: int) -> str | None:
    if Path(location).is_absolute():
        return "ONNX Runtime takes no absolute path"
    weights = path.parent / location
    home = path.resolve().parent
    if not weights.is_file():
        return "no such file"
    if not Path(os.path.realpath(weights)).is_relative_to(home):
        return f"that is outside of {home}, where the ONNX file itself lies"
    size = weights.stat().st_size
    return f"it has {size} bytes; wanted {end}" if size < end else None
