"""Whether an ONNX file is whole, and whether ONNX Runtime will read the weights it refers to.

Reads protobuf's wire format itself, and only so far as it leads to weights in other files: a server
needs no package `onnx`. Each case of the weights' place was tried with ONNX Runtime 1.31: it reads
weights beside or below the file, through hard links too, and through symbolic links as long as they
end in the folder that holds the ONNX file once its own links are resolved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iblip.export.messages import shown

# Numbers of fields in onnx.proto3.
GRAPH, NODE, INITIALIZER, ATTRIBUTE, SUBGRAPH, SUBGRAPHS = 7, 1, 5, 5, 6, 11
EXTERNAL_DATA, KEY, VALUE = 13, 1, 2

DEEPEST = 50
"""Graphs within graphs that are looked into."""


class NotOnnxError(ValueError):
    """A file that is not ONNX, or not all of it."""


def onnx_faults(path: Path) -> Iterator[str]:
    """Why ONNX Runtime will not load an ONNX file, or read its weights: a message for each place.

    Args:
        path: of the file, which exists.
    """
    try:
        ends = weights_of(path.read_bytes())
    except (NotOnnxError, OSError) as error:
        yield f"it is not an ONNX file, or not all of it ({error})"
        return
    for location, end in ends.items():
        fault = _find_fault(path, location, end)
        if fault:
            yield f"its weights are in {shown(location)}: {fault}"


def weights_of(model: bytes) -> dict[str, int]:
    """The places of weights outside an ONNX model, each with the bytes that must be there.

    Raises:
        NotOnnxError: the message is cut off or damaged.
    """
    data = memoryview(model)
    graphs = [value for number, value in _fields(data) if number == GRAPH]
    if not graphs or not all(isinstance(graph, memoryview) for graph in graphs):
        raise NotOnnxError("it has no graph")
    ends: dict[str, int] = {}
    for graph in graphs:
        for tensor in _tensors(graph, DEEPEST):
            entries = dict(map(_entry, _messages(tensor, EXTERNAL_DATA)))
            if entries:
                location = entries.get("location", "")
                end = _count(entries, "offset") + _count(entries, "length")
                ends[location] = max(end, ends.get(location, 0))
    return ends


def _tensors(graph: memoryview, depth: int) -> Iterator[memoryview]:
    """The initializers of a graph and its subgraphs."""
    if not depth:
        raise NotOnnxError("its graphs are nested too deeply")
    yield from _messages(graph, INITIALIZER)
    for node in _messages(graph, NODE):
        for attribute in _messages(node, ATTRIBUTE):
            for number in (SUBGRAPH, SUBGRAPHS):
                for subgraph in _messages(attribute, number):
                    yield from _tensors(subgraph, depth - 1)


def _entry(message: memoryview) -> tuple[str, str]:
    """A pair of strings."""
    found = {n: bytes(v) for n, v in _fields(message) if isinstance(v, memoryview)}
    try:
        return found.get(KEY, b"").decode(), found.get(VALUE, b"").decode()
    except UnicodeDecodeError as error:
        raise NotOnnxError(str(error)) from error


def _count(entries: dict[str, str], name: str) -> int:
    text = entries.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NotOnnxError(f"the {name} of weights is {shown(text)}; expected a number")
    return int(text)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and bytes where it has a length."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind, value = tag & 7, None
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            value = message[at : at + length]
            at += length
        else:
            raise NotOnnxError(f"there is no field of kind {kind}, at byte {at}")
        if at > end or not tag >> 3:
            raise NotOnnxError("it is cut off, or damaged")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, seven to a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise NotOnnxError("it is cut off, or damaged")


def _find_fault(path: Path, location: str, end: int) -> str | None:
    if not location or "\0" in location:
        return "that is no name of a file"
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
