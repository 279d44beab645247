"""One question of either client, for tests of what it waits for and asks again."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from iblip.serving.client import AsyncClient, Client, Retries

IMAGE = np.zeros((8, 8, 3), np.uint8)
SOON = Retries(first_s=0.01, longest_s=0.02)


def ask(server, *, retries=SOON, **how):
    """The answer's text, as the synchronous client gets it."""
    with Client(server.url, retries=retries, timeout=300) as client:
        return client.ask(IMAGE, "Why?", **how).text


def ask_async(server, *, retries=SOON, **how):
    async def run():
        async with AsyncClient(server.url, retries=retries, timeout=300) as client:
            return (await client.ask(IMAGE, "Why?", **how)).text

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [ask, ask_async])
