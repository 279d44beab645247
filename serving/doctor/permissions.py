"""Whether the container's user can read a build, which somebody else has written."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from iblip.engines.hardware.findings import Finding
from iblip.export.messages import shown

CONTAINER_USER = 10001
"""Number of the user and of the group in `deploy/Dockerfile`."""


def check_permissions(directory: Path, *, in_container: bool) -> Iterator[Finding]:
    """Files and directories of a build that the container's user cannot read.

    Args:
        directory: of the build.
        in_container: whether it is to be served there; else it is a note.
    """
    paths = (directory, *sorted(directory.rglob("*")))
    unreadable = [path for path in paths if path.exists() and not _is_readable(path)]
    if not unreadable:
        return
    name = shown(str(unreadable[0].relative_to(directory)))
    more = f" and {len(unreadable) - 1} more" if unreadable[1:] else ""
    yield Finding(
        title="permissions",
        verdict="problem" if in_container else "note",
        found=f"{name}{more}: other users may not read it",
        wanted=f"files that the container's user ({CONTAINER_USER}) can read",
        remedy=f"`chmod -R o+rX {directory}`; weights that are links change with their checkpoint.",
    )


def _is_readable(path: Path) -> bool:
    status = path.stat()
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
    for number, bits in ((status.st_uid, 6), (status.st_gid, 3)):
        if number == CONTAINER_USER:
            wanted <<= bits
            break
    return status.st_mode & wanted == wanted
