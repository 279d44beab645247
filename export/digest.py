"""The digest of a written graph: what it computes, wherever its weights lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import onnx

from export.errors import BuildDirectoryError
from export.manifest import Manifest

CHUNK = 2**24
"""Bytes read at once."""


class Hash(Protocol):
    """What hashlib's objects have of use here."""

    def update(self, data: Any, /) -> None:
        """Takes more bytes."""

    def hexdigest(self) -> str:
        """The digest so far, in hexadecimal."""


def finish_digest(weights: Hash, proto: onnx.ModelProto) -> str:
    """The digest of a graph, from that of its weights.

    Args:
        weights: was given each external initializer's name, then its bytes, in the graph's order.
        proto: the graph; loses the places of its weights, which do not count.
    """
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
    weights.update(proto.SerializeToString(deterministic=True))
    return weights.hexdigest()


def digest_from_onnx(path: Path) -> str:
    """Reads a written graph and every weight it binds.

    Raises:
        OSError: a file is missing.
    """
    proto = onnx.load(path, load_external_data=False)
    weights = hashlib.sha256()
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            weights.update(tensor.name.encode())
            with (path.parent / place["location"]).open("rb") as stream:
                stream.seek(int(place["offset"]))
                left = int(place["length"])
                while left and (chunk := stream.read(min(left, CHUNK))):
                    weights.update(chunk)
                    left -= len(chunk)
    return finish_digest(weights, proto)


def check_digests(directory: Path, manifest: Manifest) -> None:
    """Compares every graph of a build, weights included, with its manifest.

    Raises:
        BuildDirectoryError: naming each graph that is missing or not what the manifest says.
    """
    faults = []
    for component, record in manifest.components.items():
        for name, graph in record.graphs.items():
            try:
                found = digest_from_onnx(directory / graph.path)
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
