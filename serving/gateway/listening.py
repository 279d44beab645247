"""The socket that a gateway listens on. Needs no ASGI server: who starts one has it first."""

from __future__ import annotations

import socket

from iblip.export.errors import ServingError
from iblip.serving.server.address import ListenAddress

DRAIN_S = 10
"""Seconds in which open requests may end, once the gateway is told to stop."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ServingError: the port cannot be used.
    """
    address = ListenAddress.resolve(host)
    one = socket.socket(address.family)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address.number, port))
        one.listen(1024)
    except OSError as error:
        one.close()
        raise ServingError(
            f"port {port} of {host} cannot be used: {error.strerror}. Give another, or 0 for any "
            "free one."
        ) from error
    return one


def url_of(one: socket.socket) -> str:
    """Where a client on this machine reaches what listens."""
    host, port = one.getsockname()[:2]
    return f"http://{ListenAddress.resolve(host).reachable}:{port}"
