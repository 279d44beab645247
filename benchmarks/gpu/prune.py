"""Cuts ONNX Runtime's CUDA provider to one GPU architecture, so that it fits into a transfer.

    python -m benchmarks.gpu.prune libonnxruntime_providers_cuda.so pruned.so

The library holds its device code once for each architecture, packed, in the section `.nv_fatbin`.
The code of other architectures, and the kernels of mixtures of experts, which no graph of this
project has, become zeros in place: nothing moves, so offsets and symbols stay right, and the zeros
vanish when the file is packed. CUDA loads device code when a kernel of it is first launched, and so
never sees them, unless `CUDA_MODULE_LOADING=EAGER` is set.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ARCHITECTURE = 90
"""Of the H100 and the H200: compute capability 9.0."""

SECTION = b".nv_fatbin"

CONTAINER = struct.Struct("<IHHQ")
"""Magic number, version, bytes of this header, bytes of the entries behind it."""

MAGIC = 0xBA55ED50

ENTRY = struct.Struct("<HHIQI8xI24xQ")
"""Of the head of an entry: kind, version, bytes of the head, bytes of the payload; bytes of them
that are packed (0 if none are); architecture; bytes once unpacked."""

SYMBOL = re.compile(rb"_Z[A-Za-z0-9_]{20,400}")

EXPERTS = re.compile(rb"[Mm]o[eE]|[fF]p[aA]_?[iI]ntB|GroupProblemShape")
"""In names of kernels for mixtures of experts, and of the products that only these call."""

NEEDED = re.compile(rb"flash|AttentionKernel|MatMulNBits|MatMul4Bits|MatMulFloat|Dequantize")
"""In names of kernels that keep their code, whatever else lies with them."""


@dataclass(frozen=True, kw_only=True)
class DeviceCode:
    """One entry of the section. All but `architecture` in bytes.

    Attributes:
        offset: of the payload in the file.
        size: of the payload.
        packed: of the payload without padding.
        unpacked: once decompressed; 0 if it is not compressed.
        architecture: compute capability times ten.
    """

    offset: int
    size: int
    packed: int
    unpacked: int
    architecture: int


def prune_provider(source: Path, target: Path, architecture: int = ARCHITECTURE) -> tuple[int, int]:
    """Writes the library at `source` to `target`, with the code of one architecture.

    Args:
        source: `libonnxruntime_providers_cuda.so`.
        target: the file to write.
        architecture: compute capability times ten, such as 90.

    Returns:
        Bytes of device code that were kept, and that were cut.

    Raises:
        ValueError: the file is no library with device code, or has none for the architecture.
    """
    library = bytearray(source.read_bytes())
    codes = list(device_codes(library))
    if not any(code.architecture == architecture for code in codes):
        has = ", ".join(f"sm_{number}" for number in sorted({code.architecture for code in codes}))
        raise ValueError(f"{source} has no code for sm_{architecture}; it has {has or 'none'}")
    kept = cut = 0
    for code in codes:
        if code.architecture == architecture and not _is_of_experts(library, code):
            kept += code.size
            continue
        library[code.offset : code.offset + code.size] = bytes(code.size)
        cut += code.size
    target.write_bytes(library)
    target.chmod(source.stat().st_mode)
    return kept, cut


def device_codes(library: bytes | bytearray) -> Iterator[DeviceCode]:
    """The device code of an ELF library, in the order in which it lies.

    Raises:
        ValueError: it is no ELF file, or has no section of device code.
    """
    at, size = _find_section(library, SECTION)
    end = at + size
    while at + CONTAINER.size <= end:
        magic, _, head, length = CONTAINER.unpack_from(library, at)
        if magic != MAGIC:  # padding between containers
            at += 8
            continue
        entry, at = at + head, at + head + length
        while entry < at:
            _, _, head, size, packed, architecture, unpacked = ENTRY.unpack_from(library, entry)
            yield DeviceCode(
                offset=entry + head,
                size=size,
                packed=packed or size,
                unpacked=unpacked if packed else 0,
                architecture=architecture,
            )
            entry += head + size


def _find_section(library: bytes | bytearray, name: bytes) -> tuple[int, int]:
    """Offset and size of a section of a 64-bit ELF file."""
    if library[:5] != b"\x7fELF\x02":
        raise ValueError("it is not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<HHH", library, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", library, table + i * size) for i in range(count)]
    for row in rows:
        start = rows[names][4] + row[0]
        if library[start : start + len(name) + 1] == name + b"\0":
            return row[4], row[5]
    raise ValueError(f"it has no section {name.decode()}: no device code")


def _is_of_experts(library: bytearray, code: DeviceCode) -> bool:
    import zstandard

    payload = bytes(library[code.offset : code.offset + code.packed])
    if code.unpacked:
        decompressor = zstandard.ZstdDecompressor()
        payload = decompressor.decompress(payload, max_output_size=code.unpacked)
    names = b" ".join(set(SYMBOL.findall(payload)))
    return bool(EXPERTS.search(names)) and not NEEDED.search(names)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--architecture", default=ARCHITECTURE, show_default=True)
def main(source: Path, target: Path, architecture: int) -> None:
    """Write the library SOURCE to TARGET with the device code of one architecture."""
    kept, cut = prune_provider(source, target, architecture)
    click.echo(f"kept {kept:,} bytes of device code, cut {cut:,}")


if __name__ == "__main__":
    main()
