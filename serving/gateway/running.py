"""Runs the application on a port, until it is told to stop."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from iblip.export.errors import OptionError
from iblip.serving.gateway.listening import DRAIN_S

IDLE_S = 75
"""Seconds that a connection may wait for its next request."""


def run(app: ASGIApp, one: socket.socket, *, until_eof: bool = False) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        app: the application.
        one: listens.
        until_eof: whether to stop at the end of standard input, too: whoever started this has gone.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = server_of(app)
    if until_eof:
        threading.Thread(target=_stop_at_eof, args=(server,), daemon=True).start()
    server.run(sockets=[one])


def server_of(app: ASGIApp) -> uvicorn.Server:
    """What serves the application, with this project's limits."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return uvicorn.Server(config)


def _stop_at_eof(server: uvicorn.Server) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    server.should_exit = True


def log_writer(path: Path | None, closing: ExitStack) -> Callable[[str], object] | None:
    """What writes the lines of the access log.

    Args:
        path: a file that is appended to; `-` is standard error; `None` is no log.
        closing: closes the file.

    Raises:
        OptionError: it cannot be written to.
    """
    if path is None:
        return None
    if path == Path("-"):
        return lambda line: print(line, file=sys.stderr, flush=True)
    try:
        file = closing.enter_context(path.open("a", encoding="utf-8", buffering=1))
    except OSError as error:
        raise OptionError(f"the log {path} cannot be written to: {error.strerror}") from error
    return lambda line: file.write(line + "\n")
