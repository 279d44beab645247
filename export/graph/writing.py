"""Traced graphs and their recipes to ONNX files: every byte is read once, and hashed on the way."""

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
from iblip.export.graph.digest import FileDigests, graph_digest
from iblip.export.progress import Advance
from iblip.export.system.files import link_or_copy
from iblip.export.system.interrupts import submit
from iblip.export.weights.recipe import Recipe

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

ALIGNMENT = 64
"""Bytes: a multiple of every dtype's size and of a cache line."""

AHEAD = 4
"""Pieces that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class BoundGraph:
    """A traced graph that knows its weights.

    Attributes:
        component: what was traced.
        model: its graph, whose weights have no values yet.
        recipes: by initializer name.
        quantisation: as `OnnxGraph.quantisation`.
    """

    component: Component
    model: ir.Model
    recipes: Mapping[str, Recipe]
    quantisation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where it is written, below the directory of all graphs."""
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
"""Folder and recipe to where the weight is."""


def size_of_weights(bound: Sequence[BoundGraph]) -> int:
    """Bytes of all weights, those that graphs of one folder share counted once."""
    return sum(recipe.nbytes for _, recipe in _first_users(bound))


def write_graphs(
    bound: Sequence[BoundGraph],
    directory: Path,
    advance: Advance,
    *,
    files: Sequence[Path] = (),
    file_digests: dict[Path, str] | None = None,
) -> tuple[OnnxGraph, ...]:
    """Writes graphs and weights below `directory`, in a folder for each component.

    A weight that needs no change is bound where it lies in the checkpoint's own file, which is
    linked into the folder (copied where the file system cannot link). Every other one is written,
    a piece at a time, to the `<graph>.weights` of the first graph of the folder that wants it.

    Weights are taken in the order in which they lie in the checkpoint, so that its files are read
    from beginning to end, once.

    Args:
        bound: the graphs.
        directory: exists; gets a folder a component.
        advance: told of the bytes read or written of each weight.
        files: of the checkpoint, in the order of their names.
        file_digests: gets the sha256 of each of `files`.

    Raises:
        ExportError: a weight leaves the range of its dtype.
        OSError: the disk is full or cannot be written.
    """
    for folder in {graph.folder for graph in bound}:
        (directory / folder).mkdir(exist_ok=True)
    with FileDigests(files) as digests:
        places = _written_weights(bound, directory, digests, advance)
        if file_digests is not None:
            file_digests.update(digests.finish())
    return tuple(_written_graph(graph, directory / graph.folder, places) for graph in bound)


def _first_users(bound: Sequence[BoundGraph]) -> dict[tuple[str, Recipe], str]:
    """Every weight of each folder once, to the first graph there that wants it; as they lie."""
    users: dict[tuple[str, Recipe], str] = {}
    for graph in bound:
        for recipe in graph.recipes.values():
            users.setdefault((graph.folder, recipe), graph.component.graph)
    return dict(sorted(users.items(), key=lambda item: _position(item[0][1])))


def _position(recipe: Recipe) -> tuple[str, int]:
    """Of the first byte that it is made of."""
    first = next(iter(recipe.source.sources), None)
    return (str(first.file), first.offset) if first else ("", 0)


def _written_weights(
    bound: Sequence[BoundGraph], directory: Path, digests: FileDigests, advance: Advance
) -> Places:
    placed: dict[tuple[str, Recipe], tuple[Path, int, Hash]] = {}
    links = Links()
    with _Writer() as writer, _spared_cores():
        for (folder, recipe), graph in _first_users(bound).items():
            for source in recipe.source.sources[:1]:
                digests.reach(source.file, source.offset + source.length)
            if lies := recipe.in_place:
                file, offset, target = links.link(lies.file, directory / folder), lies.offset, None
            else:
                file = target = directory / folder / f"{graph}.weights"
                offset = writer.aligned(file)
            placed[folder, recipe] = file, offset, _passed(recipe, writer, target, advance)
        writer.finish()
    return {
        key: Placed(file=file, offset=offset, digest=made.hexdigest())
        for key, (file, offset, made) in placed.items()
    }


@contextlib.contextmanager
def _spared_cores() -> Iterator[None]:
    """Has torch leave a core each to the threads that hash: it waits for its slowest thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Writer:
    """Hashes pieces of weights and writes them, in their order, while the next ones are made."""

    def __init__(self) -> None:
        self._files = contextlib.ExitStack()
        self._open: dict[Path, BinaryIO] = {}
        self._ends: dict[Path, int] = {}
        self._pool = ThreadPoolExecutor(1, "writer")
        self._asked: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def aligned(self, path: Path) -> int:
        """Where the next weight of a file begins, in bytes; what comes before it is filled up."""
        if path not in self._open:
            self._open[path] = self._files.enter_context(path.open("wb"))
            self._ends[path] = 0
        self.take(memoryview(bytes(-self._ends[path] % ALIGNMENT)), hashlib.sha256(), path)
        return self._ends[path]

    def take(self, data: memoryview, made: Hash, path: Path | None) -> None:
        """Adds bytes to a digest and, where there is a path, to the end of that file."""
        stream = None
        if path is not None:
            stream, self._ends[path] = self._open[path], self._ends[path] + len(data)
        self._asked.append(submit(self._pool, _take, data, made, stream))
        while len(self._asked) > AHEAD:
            self._asked.popleft().result()

    def finish(self) -> None:
        """Returns when all is written. Raises OSError where it could not be."""
        while self._asked:
            self._asked.popleft().result()


def _take(data: memoryview, made: Hash, stream: BinaryIO | None) -> None:
    made.update(data)
    if stream is not None:
        stream.write(data)


def _passed(recipe: Recipe, writer: _Writer, target: Path | None, advance: Advance) -> Hash:
    """The digest of a weight, whole when the writer has finished; written if there is a target."""
    made, size = hashlib.sha256(), 0
    for piece in recipe.pieces():
        data = _bytes(piece)
        writer.take(data, made, target)
        size += len(data)
        advance(len(data))
    if size != recipe.nbytes:
        message = f"{recipe.source.name}: {size} bytes were made, wanted {recipe.nbytes}"
        raise ExportError(message)
    return made


def _bytes(values: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _written_graph(graph: BoundGraph, folder: Path, places: Places) -> OnnxGraph:
    component, model = graph.component, graph.model
    found = {name: places[graph.folder, recipe] for name, recipe in graph.recipes.items()}
    for name, place in found.items():
        value = model.graph.initializers[name]
        value.const_value = _external(name, value, graph.recipes[name], place)
    proto = ir.to_proto(model)
    path = folder / f"{component.graph}.onnx"
    path.write_bytes(proto.SerializeToString())
    weights = [(name, found[name].digest) for name in _in_order(model, found)]
    return OnnxGraph(
        component=component.component,
        name=component.graph,
        path=path,
        weights=tuple(dict.fromkeys(place.file for place in found.values())),
        precision=component.precision,
        digest=graph_digest(weights, proto),
        contract=component.contract,
        quantisation=graph.quantisation,
    )


def _in_order(model: ir.Model, names: Mapping[str, Placed]) -> Iterator[str]:
    return (name for name in model.graph.initializers if name in names)


def _external(name: str, value: ir.Value, recipe: Recipe, place: Placed) -> ir.ExternalTensor:
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
        self._made: dict[tuple[Path, Path], Path] = {}

    def link(self, source: Path, directory: Path) -> Path:
        """`source` in `directory`: a hard link, or a copy where the file system has none.

        Files of one name, which lie in several directories, get a number each.
        """
        if (source, directory) not in self._made:
            target, number = directory / source.name, 1
            while target.exists():
                number += 1
                target = directory / f"{source.stem}-{number}{source.suffix}"
            copies = [copy for (file, _), copy in self._made.items() if file == source]
            link_or_copy(source.resolve(), target, copies[:1])
            self._made[source, directory] = target
        return self._made[source, directory]
