"""Work for a caller who may leave: it is cancelled as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class CallerGoneError(Exception):
    """The caller has closed the connection."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` does, whose body has been read; cancels it once the caller has gone.

    Raises:
        CallerGoneError: the caller has gone.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerGoneError
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
