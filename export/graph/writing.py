"""Writes traced graphs and their weights to ONNX files, and hashes every weight."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.components.component import Component
from iblip.export.errors import ExportError
from iblip.export.graph.digest import graph_digest
from iblip.export.graph.fusion import fused_from_proto, fused_path
from iblip.export.graph.source_digests import SourceDigests
from iblip.export.progress import Advance
from iblip.export.system.files import link_or_copy
from iblip.export.system.interrupts import submit
from iblip.export.weights.recipe import Recipe

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

ALIGNMENT = 64
"""Bytes: a multiple of every dtype's size and of a cache line."""

AHEAD = 4
"""Largest number of pieces that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class BoundGraph:
    """A traced graph whose weights are bound to recipes.

    Attributes:
        component: what was traced.
        model: its graph, whose weights have no values yet.
        recipes: how each weight is made, by initializer name.
        quantisation: as `OnnxGraph.quantisation`.
    """

    component: Component
    model: ir.Model
    recipes: Mapping[str, Recipe]
    quantisation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder that it is written to, in the directory of all graphs."""
        return self.component.component


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A weight on disk.

    Attributes:
        file, offset: where it begins.
        digest: sha256 of its bytes, in hexadecimal.
    """

    file: Path
    offset: int
    digest: str


Places = Mapping[tuple[str, Recipe], Placed]
"""Place of every weight, by folder and recipe."""


def size_of_weights(bound: Sequence[BoundGraph]) -> int:
    """Returns the bytes of all weights; graphs of one folder share theirs, which count once."""
    return sum(recipe.nbytes for _, recipe in _first_users(bound))


def write_graphs(
    bound: Sequence[BoundGraph],
    directory: Path,
    advance: Advance,
    digests: SourceDigests,
) -> tuple[OnnxGraph, ...]:
    """Writes graphs and weights below `directory`, in a folder for each component.

    A weight that needs no change stays where it lies in the checkpoint's own file, which is linked
    into the folder (or copied, where it cannot be linked). Every other weight is written, a piece
    at a time, to the `<graph>.weights` of the first graph of the folder that reads it.

    Weights are processed in the order in which they lie in the checkpoint, so that its files are
    read once, from beginning to end.

    Args:
        bound: the graphs.
        directory: must exist; a folder for each component is created in it.
        advance: called with the bytes read or written of each weight.
        digests: of the checkpoint.

    Raises:
        ExportError: a weight leaves the range of its dtype.
        OSError: the disk is full or cannot be written.
    """
    for folder in {graph.folder for graph in bound}:
        (directory / folder).mkdir(exist_ok=True)
    places = _write_weights(bound, directory, digests, advance)
    return tuple(_write_graph(graph, directory / graph.folder, places) for graph in bound)


def _first_users(bound: Sequence[BoundGraph]) -> dict[tuple[str, Recipe], str]:
    """Returns the first graph that reads each weight, by folder and recipe.

    Weights are in the order in which they lie in the checkpoint.
    """
    users: dict[tuple[str, Recipe], str] = {}
    for graph in bound:
        for recipe in graph.recipes.values():
            users.setdefault((graph.folder, recipe), graph.component.graph)
    return dict(sorted(users.items(), key=lambda item: _position(item[0][1])))


def _position(recipe: Recipe) -> tuple[str, int]:
    """Returns file and offset of the first byte that a weight is made from."""
    first = next(iter(recipe.source.sources), None)
    return (str(first.file), first.offset) if first else ("", 0)


def _write_weights(
    bound: Sequence[BoundGraph], directory: Path, digests: SourceDigests, advance: Advance
) -> Places:
    places: dict[tuple[str, Recipe], Placed] = {}
    pending: dict[tuple[str, Recipe], tuple[Path, int, Hash]] = {}
    links = Links()
    with _Writer() as writer, _spare_cores():
        for (folder, recipe), graph in _first_users(bound).items():
            for source in recipe.source.sources[:1]:
                digests.reach(source.file, source.offset + source.length)
            target = None
            if tensor := recipe.in_place:
                file, offset = links.link(tensor.file, directory / folder), tensor.offset
                if digest := digests.of(tensor):
                    places[folder, recipe] = Placed(file=file, offset=offset, digest=digest)
                    advance(recipe.nbytes)
                    continue
            else:
                file = target = directory / folder / f"{graph}.weights"
                offset = writer.align(file)
            pending[folder, recipe] = file, offset, _process(recipe, writer, target, advance)
        writer.finish()
    return places | {
        key: Placed(file=file, offset=offset, digest=digest.hexdigest())
        for key, (file, offset, digest) in pending.items()
    }


@contextlib.contextmanager
def _spare_cores() -> Iterator[None]:
    """Has torch leave a core to each thread that hashes: it waits for its own slowest thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Writer:
    """Hashes and writes pieces of weights in order, in a thread, while the next are computed."""

    def __init__(self) -> None:
        self._files = contextlib.ExitStack()
        self._open: dict[Path, BinaryIO] = {}
        self._ends: dict[Path, int] = {}
        self._pool = ThreadPoolExecutor(1, "writer")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def align(self, path: Path) -> int:
        """Pads a file to `ALIGNMENT`, and returns the offset at which its next weight begins."""
        if path not in self._open:
            self._open[path] = self._files.enter_context(path.open("wb"))
            self._ends[path] = 0
        self.write(memoryview(bytes(-self._ends[path] % ALIGNMENT)), hashlib.sha256(), path)
        return self._ends[path]

    def write(self, data: memoryview, digest: Hash, path: Path | None) -> None:
        """Adds bytes to a digest and, if there is a path, to the end of that file."""
        stream = None
        if path is not None:
            stream, self._ends[path] = self._open[path], self._ends[path] + len(data)
        self._pending.append(submit(self._pool, _hash_and_write, data, digest, stream))
        while len(self._pending) > AHEAD:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Waits until everything is written. Raises OSError if that fails."""
        while self._pending:
            self._pending.popleft().result()


def _hash_and_write(data: memoryview, digest: Hash, stream: BinaryIO | None) -> None:
    digest.update(data)
    if stream is not None:
        stream.write(data)


def _process(recipe: Recipe, writer: _Writer, target: Path | None, advance: Advance) -> Hash:
    """Hashes a weight, and writes it if there is a target.

    The digest that is returned is complete when the writer has finished.
    """
    digest, size = hashlib.sha256(), 0
    for piece in recipe.pieces():
        data = _bytes(piece)
        writer.write(data, digest, target)
        size += len(data)
        advance(len(data))
    if size != recipe.nbytes:
        message = f"{recipe.source.name}: {size} bytes were computed, expected {recipe.nbytes}"
        raise ExportError(message)
    return digest


def _bytes(values: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _write_graph(graph: BoundGraph, folder: Path, places: Places) -> OnnxGraph:
    component, model = graph.component, graph.model
    placed = {name: places[graph.folder, recipe] for name, recipe in graph.recipes.items()}
    for name, place in placed.items():
        value = model.graph.initializers[name]
        value.const_value = _external_tensor(name, value, graph.recipes[name], place)
    proto = ir.to_proto(model)
    path = folder / f"{component.graph}.onnx"
    path.write_bytes(proto.SerializeToString())
    if (fused := fused_from_proto(proto)) is not None:
        fused_path(path).write_bytes(fused.SerializeToString())
    weights = [(name, placed[name].digest) for name in _in_order(model, placed)]
    return OnnxGraph(
        component=component.component,
        name=component.graph,
        path=path,
        weights=tuple(dict.fromkeys(place.file for place in placed.values())),
        precision=component.precision,
        digest=graph_digest(weights, proto),
        contract=component.contract,
        quantisation=graph.quantisation,
    )


def _in_order(model: ir.Model, names: Mapping[str, Placed]) -> Iterator[str]:
    return (name for name in model.graph.initializers if name in names)


def _external_tensor(
    name: str, value: ir.Value, recipe: Recipe, place: Placed
) -> ir.ExternalTensor:
    assert value.dtype is not None
    return ir.ExternalTensor(
        location=place.file.name,
        offset=place.offset,
        length=recipe.nbytes,
        dtype=value.dtype,
        shape=ir.Shape(recipe.shape),
        name=name,
        base_dir=place.file.parent,
    )


class Links:
    """Files of a checkpoint in the folders of a build."""

    def __init__(self) -> None:
        self._targets: dict[tuple[Path, Path], Path] = {}

    def link(self, source: Path, directory: Path) -> Path:
        """Links or copies `source` into `directory` once, and returns the path there.

        Files of the same name from different directories are numbered.
        """
        if (source, directory) not in self._targets:
            target, number = directory / source.name, 1
            while target.exists():
                number += 1
                target = directory / f"{source.stem}-{number}{source.suffix}"
            copies = [copy for (file, _), copy in self._targets.items() if file == source]
            link_or_copy(source.resolve(), target, copies[:1])
            self._targets[source, directory] = target
        return self._targets[source, directory]
