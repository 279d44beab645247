"""A traced graph and its recipes to an ONNX file, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.components.component import Component
from export.digest import finish_digest
from export.graphs import OnnxGraph
from export.progress import Advance
from export.weights import Recipe

Casts = dict[Recipe | Path, tuple[Path, int]]
"""Where each weight that was not in place has been written, and what each file of the checkpoint
has been linked as: file and offset, in one directory."""

ALIGNMENT = 64
"""Bytes: a multiple of every dtype's size and of a cache line."""


def write_graph(
    component: Component,
    model: ir.Model,
    recipes: Mapping[str, Recipe],
    directory: Path,
    advance: Advance,
    casts: Casts | None = None,
) -> OnnxGraph:
    """Binds every weight of `model` and writes it to `directory`.

    A weight that needs no change is read from the checkpoint's own file, which is linked into
    `directory` (copied where the file system cannot link). Every other one is cast and
    appended to `<graph>.weights`, unless another graph of the directory has it already.

    Args:
        component: what was traced.
        model: its graph, whose weights have no values yet.
        recipes: by initializer name.
        directory: exists; gets `<graph>.onnx`.
        advance: told of the bytes bound.
        casts: what other graphs of `directory` have written; this one's are added.
    """
    path = directory / f"{component.graph}.onnx"
    digest = hashlib.sha256()
    data = directory / f"{component.graph}.weights"
    files: dict[Path, None] = {}
    casts = {} if casts is None else casts
    with data.open("wb") as stream:
        for name, recipe in recipes.items():
            value = model.graph.initializers[name]
            values = recipe.evaluate()
            digest.update(name.encode())
            digest.update(_bytes(values))
            if source := recipe.in_place:
                if source.file not in casts:
                    casts[source.file] = _link(source.file, directory), 0
                file, offset = casts[source.file][0], source.offset
            else:
                if recipe not in casts:
                    casts[recipe] = data, _append(stream, values)
                file, offset = casts[recipe]
            files[file] = None
            value.const_value = ir.ExternalTensor(
                location=file.name,
                offset=offset,
                length=recipe.nbytes,
                dtype=value.dtype or ir.DataType.from_numpy(values.dtype),
                shape=ir.Shape(values.shape),
                name=name,
                base_dir=directory,
            )
            advance(recipe.nbytes)
    if data not in files:
        data.unlink()
    proto = ir.to_proto(model)
    path.write_bytes(proto.SerializeToString())
    return OnnxGraph(
        component=component.component,
        name=component.graph,
        path=path,
        weights=tuple(files),
        precision=component.precision,
        digest=finish_digest(digest, proto),
        contract=component.contract,
    )


def _bytes(values: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _append(stream: BinaryIO, values: npt.NDArray[Any]) -> int:
    stream.write(bytes(-stream.tell() % ALIGNMENT))
    offset = stream.tell()
    stream.write(_bytes(values))
    return offset


def _link(source: Path, directory: Path) -> Path:
    """Files of one name, which lie in several directories, get a number each."""
    target, number = directory / source.name, 1
    while target.exists():
        if target.samefile(source):
            return target
        number += 1
        target = directory / f"{source.stem}-{number}{source.suffix}"
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
