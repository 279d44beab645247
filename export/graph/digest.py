"""Digests: of written graphs, whose weights may lie anywhere, and of a checkpoint's files."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import onnx

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import BuildDirectoryError
from iblip.export.system.interrupts import submit

CHUNK = 2**24
"""Bytes read at once."""

AHEAD = 2
"""Tensors that `FileDigests` may be behind who asks it to read."""

Known = dict[tuple[int, int, int, int], str]
"""Digests that have been taken of parts of files: device, inode, offset and length to sha256."""


def graph_digest(weights: Iterable[tuple[str, str]], proto: onnx.ModelProto) -> str:
    """The digest of a graph: what it computes, wherever its weights lie.

    Args:
        weights: each external initializer's name and the sha256 of its bytes, in the graph's order.
        proto: the graph; loses the places of its weights, which do not count.
    """
    made = hashlib.sha256()
    for name, digest in weights:
        made.update(f"{name} {digest}\n".encode())
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
    made.update(proto.SerializeToString(deterministic=True))
    return made.hexdigest()


def digest_from_onnx(path: Path, known: Known | None = None) -> str:
    """Reads a written graph and every weight it binds.

    Args:
        path: of the `.onnx` file.
        known: digests that other graphs with the same weights have taken; gets this one's.

    Raises:
        OSError: a file is missing.
    """
    proto = onnx.load(path, load_external_data=False)
    known = {} if known is None else known
    weights = []
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            file = path.parent / place["location"]
            stat = file.stat()
            key = stat.st_dev, stat.st_ino, int(place["offset"]), int(place["length"])
            if key not in known:
                known[key] = _sha256_of_part(file, key[2], key[3])
            weights.append((tensor.name, known[key]))
    return graph_digest(weights, proto)


def _sha256_of_part(file: Path, offset: int, length: int) -> str:
    made = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(offset)
        while length and (chunk := stream.read(min(length, CHUNK))):
            made.update(chunk)
            length -= len(chunk)
    return made.hexdigest()


class FileDigests:
    """sha256 of whole files, by a thread that reads them side by side with who reads parts of them.

    What both read at about the same time comes from the disk once.

    Args:
        files: in the order in which they are read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._left = deque(files)
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._made: dict[Path, str] = {}
        self._pool = ThreadPoolExecutor(1, "digests")
        self._asked: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.close()

    def reach(self, file: Path, end: int) -> None:
        """Has `file` read up to `end`, and those before it whole; returns when not far behind.

        Nothing happens if it is none of the files, or has been read so far.
        """
        if file in self._files:
            self._asked.append(submit(self._pool, self._read, file, end))
            while len(self._asked) > AHEAD:
                self._asked.popleft().result()

    def finish(self) -> dict[Path, str]:
        """Reads the rest; the digests in hexadecimal, by file.

        Raises:
            OSError: a file cannot be read.
        """
        submit(self._pool, self._read, None, 0).result()
        return self._made

    def _read(self, last: Path | None, end: int) -> None:
        if last in self._made:
            return
        while self._left and self._left[0] != last:
            self._read_current(None)
        if self._left:
            self._read_current(end)

    def _read_current(self, end: int | None) -> None:
        """The first file that is not done: up to `end`, or whole."""
        file = self._left[0]
        self._stream = self._stream or file.open("rb")
        while end is None or self._stream.tell() < end:
            if not (chunk := self._stream.read(CHUNK)):
                break
            self._hash.update(chunk)
        if end is None:
            self._made[file] = self._hash.hexdigest()
            self._stream.close()
            self._left.popleft()
            self._stream, self._hash = None, hashlib.sha256()


def check_digests(directory: Path, manifest: Manifest) -> None:
    """Compares every graph of a build, weights included, with its manifest.

    Raises:
        BuildDirectoryError: naming each graph that is missing or not what the manifest says.
    """
    faults, known = [], Known()
    for component, record in manifest.components.items():
        for name, graph in record.graphs.items():
            try:
                found = digest_from_onnx(directory / graph.path, known)
            except OSError as error:
                faults.append(f"{component}/{name}: {error}")
                continue
            if found != graph.digest:
                faults.append(f"{component}/{name} has digest {found}, wanted {graph.digest}")
    if faults:
        raise BuildDirectoryError(
            f"{directory} is not what its manifest says:\n  "
            + "\n  ".join(faults)
            + "\nWeights that needed no change are shared with the checkpoint's own file; was that"
            " written to? Build again."
        )
