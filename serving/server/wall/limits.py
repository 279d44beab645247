"""What a request over HTTP may be: `check` refuses what would end Triton 2.51.

Triton reads JSON by recursion, so depth ends it (stack overflow), and makes room for the `shape`
that a tensor claims before it counts what was sent (out of memory). Knows nothing of connections.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from iblip.export.errors import OptionError
from iblip.export.system.json_text import parse_json

MIB = 2**20

MOST_MIB = 1024
"""Triton puts the pieces of a body on its stack, at 4 KiB a piece: of 2 GiB it would die."""

MAX_JSON_MIB = 16
"""Of a body that is JSON; tensors can follow it as bytes, up to the body's own limit."""

MAX_DEPTH = 64
"""Brackets that may be open at once; tensors have fewer than ten."""

MAX_BRACKETS = 1_000_000
"""Arrays and objects in JSON, also where a string has their brackets: Python and Triton take more
memory and time for each than for a number. Four images of 490 by 490 have as many."""

WINDOW = MIB
"""Bytes in which strings are looked for at a time: what one costs in Python stays bounded."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON, where tensors follow it."""

_INFER = re.compile(r"/v2/models/[^/?%]+(/versions/[0-9]+)?/infer(\?.*)?")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class RefusedError(Exception):
    """A request that is not passed on.

    Args:
        status: what its caller is told.
        reason: in a sentence.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of anything a request may have.

    Attributes:
        body: bytes of a body, also after it has been decompressed.
        json: bytes of what is JSON in it.

    Raises:
        OptionError: a limit is out of range.
    """

    body: int = 64 * MIB
    json: int = MAX_JSON_MIB * MIB

    def __post_init__(self) -> None:
        if not 0 < self.body <= MOST_MIB * MIB:
            raise OptionError(
                f"the limit of an HTTP body is {self.body} bytes; expected 1 to {MOST_MIB} MiB"
            )


def takes_tensors(path: str) -> bool:
    """Whether bytes of tensors may follow the JSON of requests to a path."""
    return _INFER.fullmatch(path) is not None


def json_length(values: list[str], size: int) -> int:
    """How many bytes of a body are JSON.

    Args:
        values: of every `Inference-Header-Content-Length`.
        size: of the body.

    Raises:
        RefusedError: they name no part of the body.
    """
    if not values:
        return size
    (value, *more) = values
    if more or not re.fullmatch("[0-9]{1,19}", value) or int(value) > size:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"{HEADER_LENGTH} is {', '.join(values)[:100]!r}; expected a number of bytes, at most "
            f"the {size} of the body",
        )
    return int(value)


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """A body as it was before it was compressed.

    Args:
        encoding: as `Content-Encoding` names it.
        limit: bytes that it may have.

    Raises:
        RefusedError: it has more, is broken, or is compressed by another method.
    """
    windows = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    if encoding in ("", "identity"):
        return body
    if encoding not in windows:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding is {encoding[:100]!r}; expected gzip or deflate",
        )
    stream = zlib.decompressobj(windows[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is not {encoding}: {error}") from None
    if len(plain) > limit:
        raise too_large("body, decompressed,", limit)
    if not stream.eof or stream.unused_data:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"the body is not one whole stream of {encoding}"
        )
    return plain


def check(head: bytes, size: int, limits: Limits) -> frozenset[str]:
    """Checks the JSON of a request; returns the names in it, if it is an object.

    Args:
        head: the JSON; none is nothing to check.
        size: bytes of the whole body.

    Raises:
        RefusedError: it is not JSON, too large or too deep, or a tensor claims more elements than
            there are bytes.
    """
    if len(head) > limits.json:
        raise too_large("JSON of the body", limits.json)
    if head.count(b"[") + head.count(b"{") > MAX_BRACKETS:
        raise RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the JSON has more than {MAX_BRACKETS} arrays and objects; send tensors as bytes, or "
            "flat",
        )
    if not head:
        return frozenset()
    try:
        # Triton takes strings that are not UTF-8, and the first of two equal keys.
        document = parse_json(head.decode("utf-8", "surrogateescape"), unique=True)
    except ValueError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
    if depth_exceeds(head, MAX_DEPTH):
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"the JSON is nested more than {MAX_DEPTH} brackets deep"
        )
    for tensor in _tensors(document):
        if claimed_elements(tensor) > size:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"the shape {str(tensor['shape'])[:100]} has more elements than the body has "
                f"bytes ({size})",
            )
    return frozenset(document) if isinstance(document, dict) else frozenset()


def claimed_elements(tensor: dict[str, Any]) -> int:
    """How many elements the `shape` of a tensor says that it has; 0 where Triton refuses it."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        return 0
    return math.prod(map(abs, shape))


def depth_exceeds(text: bytes, most: int) -> bool:
    """Whether more than so many brackets are open at once at some place in JSON.

    Where arrays and objects alternate, twice as many may pass. Of text that is not JSON it says
    nothing.
    """
    brackets = b"".join(part.translate(None, _NOT_BRACKETS) for part in outside_strings(text))
    for _ in range(most):  # each takes off the innermost, and what then is, if of the other kind
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def outside_strings(text: bytes) -> Iterator[bytes]:
    """The parts of JSON that are not in quotes."""
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"")
    inside = 0
    for start in range(0, len(plain), WINDOW):
        parts = plain[start : start + WINDOW].split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= (len(parts) - 1) % 2


def too_large(what: str, limit: int) -> RefusedError:
    """The refusal of something that has more bytes than it may have."""
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the {what} has more than {limit} bytes, which is the most that this server takes",
    )


def _tensors(document: Any) -> Iterator[dict[str, Any]]:
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        if not isinstance(tensor, dict):
            continue
        parameters = tensor.get("parameters")
        # What lies in shared memory is not in the body, and Triton compares its size itself.
        region = parameters.get("shared_memory_region") if isinstance(parameters, dict) else None
        if not isinstance(region, str):
            yield tensor
