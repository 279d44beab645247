"""Digests of written graphs, whose weights may lie in any file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx

from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import check_references
from iblip.export.errors import BuildDirectoryError

CHUNK = 2**24
"""Number of bytes that are read at once."""

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
