"""What comes before Triton's own command where a wall stands before it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import iblip
from iblip.serving.server.wall.library import NoLibraryError, classification_library

logger = logging.getLogger(__name__)

LAUNCH = Path(iblip.__file__).parent / "serving" / "server" / "wall" / "launch.py"

SERVICES = ("http", "metrics")
"""Those that Triton's HTTP server offers: the wall listens on their ports."""


def triton_address(service: str) -> str:
    """Where Triton listens behind the wall, as its flag takes it: in its working directory."""
    return f"unix:{service}.sock"


def wall_arguments(
    hosts: Mapping[str, str],
    ports: Mapping[str, int],
    max_body: int,
    scratch: Path,
    caller_header: str = "",
) -> list[str]:
    """The program that starts the wall and becomes the command that follows.

    Args:
        hosts: of each service: where to listen, as a number.
        ports: of each service.
        max_body: bytes of a request's body; 0 is no wall before HTTP.
        scratch: the working directory. The library is linked there: the linker takes a list of
            names, and splits them at spaces and colons.
        caller_header: by which callers are told apart, if they are.
    """
    arguments = [sys.executable, str(LAUNCH), f"--max-body={max_body}"]
    if caller_header:
        arguments.append(f"--caller-header={caller_header}")
    try:
        library = classification_library()
        (scratch / library.name).symlink_to(library)
        arguments.append(f"--preload={library.name}")
    except NoLibraryError as error:
        logger.warning("%s", error)
    for service in SERVICES if max_body else ():
        arguments += ["--listen", hosts[service], str(ports[service]), f"{service}.sock"]
    return [*arguments, "--"]
