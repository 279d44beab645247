"""Images that cost far more to decode than to send."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of `side` by `side` pixels whose last scan is there so often.

    Each scan is a walk over all of its blocks, of a few bytes where these are of one colour.
    """
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 90)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    (length,) = struct.unpack_from(">H", data, last + 2)
    end = data.rindex(b"\xff\xd9")
    assert last + 2 + length < end
    return data[:last] + data[last:end] * scans + data[end:]


def huge_png() -> bytes:
    """A few bytes that say they are 100,000 by 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")
