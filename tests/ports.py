"""Ports of this machine."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

LOWEST, HIGHEST = 20_000, 32_000
"""Below the ports that a system gives to sockets that ask for any: 32768 and up on Linux."""

WORKERS = 16


def _candidates() -> Iterator[int]:
    """Ports of this worker of the tests alone, each once, from anywhere on."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    ports = range(LOWEST + worker, HIGHEST, WORKERS)
    start = random.SystemRandom().randrange(len(ports))
    yield from (*ports[start:], *ports[:start])


_untried = _candidates()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 for servers that are told theirs, each given once.

    Nobody listens there, and nobody is likely to before the server does: no socket gets one unless
    it asks for it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = next(_untried)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # taken
            continue
        ports.append(port)
    return ports


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections, and that nobody else gets in the block.

    A gRPC server of this user may listen there: its ports may be shared, too.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
