"""Checks of free memory, disk and shared memory."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.engines.hardware.findings import Finding, Verdict
from iblip.export.messages import size_text
from iblip.serving.doctor.machine import Machine

BUILD_MEMORY = 1 << 30
"""Bytes of memory for a build: it takes at most 865 MiB for 7 B (docs/evidence.md)."""

BUILD_DISK = 10 << 30
"""Bytes that the largest build so far has written: 9.4 GB for 7 B in int4 (docs/evidence.md)."""

LEAST_DISK = 1 << 30
"""Bytes below which even a small build, or a server's log, may not fit."""

SHARED_MEMORY = 256 << 20
"""Bytes of `/dev/shm` for a server of small models; Docker's default is 64 MiB."""


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Checks that the free memory suffices for a build."""
    remedy = "Close other programs."
    yield _check_free("memory", machine.memory, BUILD_MEMORY, BUILD_MEMORY, remedy)


def check_disk(machine: Machine) -> Iterator[Finding]:
    """Checks that the free disk space suffices for a build."""
    remedy = "Free some space, or build to another disk with --output."
    yield _check_free("disk", machine.disk, LEAST_DISK, BUILD_DISK, remedy)


def check_shared_memory(machine: Machine) -> Iterator[Finding]:
    """Free shared memory, for a server."""
    remedy = "Make /dev/shm larger; in Docker with `--shm-size 1g`."
    size = machine.shared_memory
    yield _check_free("shared memory", size, SHARED_MEMORY, SHARED_MEMORY, remedy)


def _check_free(title: str, free: int | None, least: int, enough: int, remedy: str) -> Finding:
    if free is None:
        return Finding(title=title, verdict="note", found="this system does not report it")
    text = f"{size_text(free)} free"
    if free < least:
        wanted = f"{size_text(least)} or more"
        return Finding(title=title, verdict="warning", found=text, wanted=wanted, remedy=remedy)
    small = f"; the largest build so far wrote {size_text(enough)}" if free < enough else ""
    verdict: Verdict = "note" if small else "ok"
    return Finding(title=title, verdict=verdict, found=text + small)
