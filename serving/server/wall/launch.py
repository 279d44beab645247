"""`launch.py [OPTIONS] --listen HOST PORT SOCKET … -- COMMAND…`

A script that becomes Triton, after it has started the wall before it: the wall is a child of
Triton's process, and ends with it. It listens before Triton has begun, so that a port that is taken
is known at once; until Triton listens, it answers 503.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import resource
import socket
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[4]
"""The folder that has this package in it: the wall is started without a search path of its own."""


def main() -> None:
    """Listens, forks, and runs the command in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preload", help="a library for the command's own process")
    parser.add_argument("--max-body", type=int, required=True, help="bytes")
    parser.add_argument("--caller-header", default="", help="says who asks")
    parser.add_argument(
        "--listen", action="append", nargs=3, default=[], metavar=("HOST", "PORT", "SOCKET")
    )
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    listeners = [
        (_bound(host, int(port)), str(Path(path).absolute()))
        for host, port, path in arguments.listen
    ]
    for _, path in listeners:
        Path(path).unlink(missing_ok=True)  # of a start before
    if listeners and os.fork() == 0:
        _serve(listeners, arguments.max_body, arguments.caller_header)
    if arguments.preload:
        others = os.environ.get("LD_PRELOAD")
        library = str(Path(arguments.preload).absolute())
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (library, others)))
    os.execvp(arguments.command[0], arguments.command)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        sys.exit(f"port {port} of {host} cannot be used: {error.strerror}")
    return listener


def _serve(listeners: list[tuple[socket.socket, str]], max_body: int, caller_header: str) -> None:
    """Runs the wall; never returns."""
    try:
        sys.path[0] = str(ROOT)
        from iblip.serving.server.wall.limits import Limits
        from iblip.serving.server.wall.proxy import Listener, serve
        from iblip.serving.steps.heartbeat import start_heartbeat

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        start_heartbeat()  # ends this process with Triton, too
        serve(
            [Listener(port=port, target=target) for port, target in listeners],
            Limits(body=max_body),
            caller_header,
        )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
