"""Many questions at once: rows in, results out in the same order, an error for each row that fails.

Both clients and the model in this process map with these functions. What asks one question is a
function that they are given; this module knows no server and no engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar, cast

from iblip.export.errors import InputError, OptionError
from iblip.export.images import ImageSources
from iblip.export.messages import kind_of, shown
from iblip.serving.client.tally import Tally, Watcher

Row = tuple[ImageSources, str] | Sequence[Any] | Mapping[str, Any]
"""One question: `(image, prompt)`, or a mapping with `image`, `prompt` and, where this row differs
from the others, further arguments by name (`{"image": …, "prompt": …, "max_new_tokens": 30}`)."""

CONCURRENCY = 16
"""Questions that are asked at the same time, unless the caller says otherwise."""

MOST_CONCURRENCY = 1024
"""More would be threads that wait."""

AHEAD = 8
"""Rows that may be read before the first of them is answered, in multiples of `concurrency`."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row, read.

    Attributes:
        image: one image, or several.
        prompt: the question or instruction.
        arguments: further arguments of this question, by name.
    """

    image: Any
    prompt: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RowResult(Generic[T]):
    """What became of one row: an answer or an error.

    Attributes:
        index: of the row, from 0.
        answer: `None` if the row failed.
        error: why it failed; `None` if it did not.
    """

    index: int
    answer: T | None = None
    error: Exception | None = None

    def unwrap(self) -> T:
        """Returns the answer, or raises the error."""
        if self.error is not None:
            raise self.error
        return cast(T, self.answer)

    @property
    def text(self) -> str:
        """The text of the answer. Raises the error if the row failed."""
        return str(cast(Any, self.unwrap()).text)


def question_from_row(row: Row) -> Question:
    """Reads one row.

    Raises:
        InputError: the row is not `(image, prompt)`, or has no `image` or `prompt`.
    """
    if isinstance(row, Mapping):
        missing = [name for name in ("image", "prompt") if name not in row]
        if missing:
            names = ", ".join(map(shown, row)) or "nothing"
            raise InputError(f"the row has {names}; expected 'image' and 'prompt'")
        others = {name: row[name] for name in row if name not in ("image", "prompt")}
        return Question(image=row["image"], prompt=row["prompt"], arguments=others)
    if isinstance(row, tuple | list) and len(row) == 2:
        return Question(image=row[0], prompt=row[1])
    length = f" of {len(row)}" if isinstance(row, tuple | list) else ""
    raise InputError(
        f"the row is {kind_of(row)}{length}; expected (image, prompt), or a mapping with "
        "'image' and 'prompt'"
    )


def map_rows(
    ask: Callable[[Question], T],
    rows: Iterable[Row],
    *,
    concurrency: int = CONCURRENCY,
    progress: bool | Watcher = False,
    cancel: Callable[[], object] | None = None,
) -> Generator[RowResult[T]]:
    """Asks about every row in several threads; yields the results in the order of the rows.

    Rows are read as the results are taken, in the caller's thread, at most `AHEAD * concurrency`
    ahead of them, so `rows` may be a generator of any length. An exception of `rows` itself is
    raised after the results of the rows before it. Closing the iterator, or leaving the loop,
    cancels what is under way.

    Args:
        ask: answers one question; called in other threads. What it raises becomes the row's error.
        rows: the questions.
        concurrency: questions that are asked at the same time, 1 to 1024.
        progress: `True` shows a line on stderr; a function is told of each row; see
            `Watcher`.
        cancel: ends the calls of `ask` that are under way, when the iterator is left early.

    Raises:
        OptionError: `concurrency` is out of range.
        InputError: `rows` is nothing to iterate over.
    """
    iterator = iter(_check_rows(rows, Iterable))
    tally = Tally.of(rows, progress)
    return _results(ask, iterator, _check_concurrency(concurrency), tally, cancel)


def map_rows_async(
    ask: Callable[[Question], Awaitable[T]],
    rows: Iterable[Row] | AsyncIterable[Row],
    *,
    concurrency: int = CONCURRENCY,
    progress: bool | Watcher = False,
) -> AsyncGenerator[RowResult[T]]:
    """As `map_rows`, in tasks of the running loop; `rows` may also be an asynchronous iterable.

    A generator that blocks blocks the loop: give an asynchronous one where reading a row takes
    long. Leaving `async for` early cancels what is under way once the iterator is closed:
    `contextlib.aclosing` does so at once.
    """
    _check_rows(rows, (Iterable, AsyncIterable))
    tally = Tally.of(rows, progress)
    return _results_async(ask, _each(rows), _check_concurrency(concurrency), tally)


def _check_rows(rows: Any, kinds: Any) -> Any:
    if isinstance(rows, kinds) and not isinstance(rows, str | bytes | Mapping):
        return rows
    raise InputError(
        f"rows is {kind_of(rows)}; expected an iterable of (image, prompt), or of mappings "
        "with 'image' and 'prompt'"
    )


def _check_concurrency(concurrency: int) -> int:
    if isinstance(concurrency, int) and 1 <= concurrency <= MOST_CONCURRENCY:
        return concurrency
    raise OptionError(
        f"concurrency is {shown(concurrency)}; expected an integer from 1 to {MOST_CONCURRENCY}"
    )


def _has_room(window: deque[Any], concurrency: int) -> bool:
    """Whether to read another row: each worker has a second one waiting, and few wait to be taken.

    Without a bound on results, one slow answer would let those behind it fill the memory.
    """
    unfinished = sum(not one.done() for one in window)
    return unfinished < 2 * concurrency and len(window) < AHEAD * concurrency


def _results(
    ask: Callable[[Question], T],
    rows: Iterator[Row],
    concurrency: int,
    tally: Tally,
    cancel: Callable[[], object] | None,
) -> Generator[RowResult[T]]:
    window: deque[Future[RowResult[T]]] = deque()  # in the order of the rows
    end: Exception | None = None
    indices = count()
    tally.start()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="iblip-map")
    try:
        while window or end is None:
            if end is None and _has_room(window, concurrency):
                try:
                    submitted = pool.submit(_answer, ask, next(indices), next(rows), tally)
                except Exception as error:
                    end = error
                else:
                    window.append(submitted)
            if window and window[0].done():
                yield window.popleft().result()
            elif window and (end is not None or not _has_room(window, concurrency)):
                wait([one for one in window if not one.done()], return_when=FIRST_COMPLETED)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if window and cancel is not None:
            cancel()
        pool.shutdown()
        tally.close()
    _raise_unless_over(end)


def _answer(ask: Callable[[Question], T], index: int, row: Row, tally: Tally) -> RowResult[T]:
    result: RowResult[T]
    try:
        result = RowResult(index=index, answer=ask(question_from_row(row)))
    except Exception as error:  # a caller's own object may raise anything, and other rows go on
        result = RowResult(index=index, error=error)
    tally.add(failed=result.error is not None)
    return result


async def _results_async(
    ask: Callable[[Question], Awaitable[T]],
    rows: AsyncIterator[Row],
    concurrency: int,
    tally: Tally,
) -> AsyncGenerator[RowResult[T]]:
    window: deque[asyncio.Task[RowResult[T]]] = deque()  # in the order of the rows
    reading: asyncio.Task[Row] | None = None
    end: Exception | None = None
    indices = count()
    tally.start()
    slots = asyncio.Semaphore(concurrency)
    try:
        while window or end is None:
            if end is None and reading is None and _has_room(window, concurrency):
                reading = asyncio.create_task(_next(rows))
            if reading is not None and reading.done():
                try:
                    answer = _answer_async(ask, next(indices), reading.result(), tally, slots)
                except Exception as error:
                    end = error
                else:
                    window.append(asyncio.create_task(answer))
                reading = None
            elif window and window[0].done():
                yield window.popleft().result()
            elif waiting := _unfinished(window, reading):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting = _unfinished(window, reading)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        tally.close()
    _raise_unless_over(end)


async def _answer_async(
    ask: Callable[[Question], Awaitable[T]],
    index: int,
    row: Row,
    tally: Tally,
    slots: asyncio.Semaphore,
) -> RowResult[T]:
    result: RowResult[T]
    async with slots:
        try:
            result = RowResult(index=index, answer=await ask(question_from_row(row)))
        except Exception as error:  # as in `_answer`
            result = RowResult(index=index, error=error)
    tally.add(failed=result.error is not None)
    return result


def _unfinished(
    window: Iterable[asyncio.Task[Any]], reading: asyncio.Task[Any] | None
) -> set[asyncio.Task[Any]]:
    tasks = [*window, *([reading] if reading is not None else [])]
    return {task for task in tasks if not task.done()}


async def _next(rows: AsyncIterator[Row]) -> Row:
    return await anext(rows)


async def _each(rows: Iterable[Row] | AsyncIterable[Row]) -> AsyncIterator[Row]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


def _raise_unless_over(end: Exception | None) -> None:
    """Raises what `rows` itself raised, if that is not its end."""
    if end is not None and not isinstance(end, StopIteration | StopAsyncIteration):
        raise end
