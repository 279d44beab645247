"""What a shared library wants of others: a reader of the dynamic section of 64-bit ELF files."""

from __future__ import annotations

import mmap
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

DYNSYM, STRTAB, VERSYM, VERNEED = 11, 3, 0x6FFFFFFF, 0x6FFFFFFE
"""Types of sections: `SHT_DYNSYM`, `SHT_STRTAB`, `SHT_GNU_versym`, `SHT_GNU_verneed`."""


def find_undefined(library: Path) -> dict[str, set[str]]:
    """Undefined symbols by the library that has to define them; `""` if they name none."""
    found: dict[str, set[str]] = defaultdict(set)
    with library.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        sections = {kind: (at, size, link) for kind, at, size, link in _sections(data)}
        at, size, link = sections[DYNSYM]
        names = _section(data, link)
        libraries = dict(_version_libraries(data, *sections[VERNEED]))
        versions = sections[VERSYM][0]
        for index in range(1, size // 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, at + 24 * index)
            (version,) = struct.unpack_from("<H", data, versions + 2 * index)
            if section == 0:
                found[libraries.get(version, "")].add(_string(data, names + name))
    return dict(found)


def find_names(library: Path, start: str) -> set[str]:
    """Names that the library keeps as text to look them up at run time, such as `cudnnCreate`."""
    with library.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        pattern = b"\0(" + start.encode() + rb"[A-Z]\w*)(?=\0)"
        return {match[1].decode() for match in re.finditer(pattern, data)}


def _sections(data: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, size and linked section of each section."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for index in range(count):
        _, kind, _, _, at, length, link = struct.unpack_from("<IIQQQQI", data, table + size * index)
        yield kind, at, length, link


def _section(data: mmap.mmap, number: int) -> int:
    return list(_sections(data))[number][1]


def _version_libraries(data: mmap.mmap, at: int, size: int, link: int) -> Iterator[tuple[int, str]]:
    """Each version's number, and the library that has it."""
    names, need = _section(data, link), at
    while True:
        _, count, file, first, following = struct.unpack_from("<HHIII", data, need)
        library, entry = _string(data, names + file), need + first
        for _ in range(count):
            _, _, number, _, after = struct.unpack_from("<IHHII", data, entry)
            yield number, library
            entry += after
        if not following:
            return
        need += following


def _string(data: mmap.mmap, at: int) -> str:
    return data[at : data.find(b"\0", at)].decode()
