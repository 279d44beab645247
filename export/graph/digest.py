"""Digests of written graphs, whose weights may lie in any file, and of a checkpoint's files."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import onnx

from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import check_references
from iblip.export.errors import BuildDirectoryError
from iblip.export.system.interrupts import submit

CHUNK = 2**24
"""Number of bytes that are read at once."""

AHEAD = 2
"""Requests to read that `FileDigests` may be behind."""

Known = dict[tuple[int, int, int, int], str]
"""sha256 of parts of files, by device, inode, offset and length."""


def graph_digest(weights: Iterable[tuple[str, str]], proto: onnx.ModelProto) -> str:
    """Returns the digest of a graph, which does not depend on where its weights lie.

    Args:
        weights: each external initializer's name and the sha256 of its bytes, in the graph's order.
        proto: the graph; the places of its weights are removed from it.
    """
    graph = hashlib.sha256()
    for name, digest in weights:
        graph.update(f"{name} {digest}\n".encode())
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
    graph.update(proto.SerializeToString(deterministic=True))
    return graph.hexdigest()


def digest_from_onnx(path: Path, known: Known | None = None) -> str:
    """Reads a written graph and every weight that it binds, and returns its digest.

    Args:
        path: of the `.onnx` file.
        known: digests of weights that are known from other graphs; this graph's are added.

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
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(offset)
        while length and (chunk := stream.read(min(length, CHUNK))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()


class FileDigests:
    """Hashes whole files in a thread, which keeps pace with a caller that reads parts of them.

    What both read at about the same time is read from the disk once.

    Args:
        files: in the order in which they are read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._left = deque(files)
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._digests: dict[Path, str] = {}
        self._pool = ThreadPoolExecutor(1, "digests")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.close()

    def reach(self, file: Path, end: int) -> None:
        """Has `file` read up to offset `end`, and the files before it whole.

        Returns when the thread is at most `AHEAD` requests behind. A file that is not one of
        `files`, or has been read that far, is ignored.
        """
        if file in self._files:
            self._pending.append(submit(self._pool, self._read, file, end))
            while len(self._pending) > AHEAD:
                self._pending.popleft().result()

    def finish(self) -> dict[Path, str]:
        """Reads the rest, and returns the digest of every file in hexadecimal.

        Raises:
            OSError: a file cannot be read.
        """
        submit(self._pool, self._read, None, 0).result()
        return self._digests

    def _read(self, last: Path | None, end: int) -> None:
        if last in self._digests:
            return
        while self._left and self._left[0] != last:
            self._read_current(None)
        if self._left:
            self._read_current(end)

    def _read_current(self, end: int | None) -> None:
        """Reads the first file that is not finished, up to `end` or whole."""
        file = self._left[0]
        self._stream = self._stream or file.open("rb")
        while end is None or self._stream.tell() < end:
            if not (chunk := self._stream.read(CHUNK)):
                break
            self._hash.update(chunk)
        if end is None:
            self._digests[file] = self._hash.hexdigest()
            self._stream.close()
            self._left.popleft()
            self._stream, self._hash = None, hashlib.sha256()


def check_digests(directory: Path, manifest: Manifest) -> None:
    """Compares every graph of a build, weights included, and its references with its manifest.

    Raises:
        BuildDirectoryError: naming each graph or file that is missing or not what the manifest
            says.
    """
    check_references(directory, manifest)
    faults, known = [], Known()
    for component, record in manifest.components.items():
        for name, graph in record.graphs.items():
            try:
                digest = digest_from_onnx(directory / graph.path, known)
            except OSError as error:
                faults.append(f"{component}/{name}: {error}")
                continue
            if digest != graph.digest:
                faults.append(f"{component}/{name} has digest {digest}, expected {graph.digest}")
    if faults:
        raise BuildDirectoryError(
            f"{directory} is not what its manifest says:\n  "
            + "\n  ".join(faults)
            + "\nWeights that needed no change are shared with the checkpoint's own file; was that"
            " written to? Build again."
        )
