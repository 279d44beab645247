"""Answers many questions at once: admits them, has images encoded, passes answers on.

Knows neither Triton nor any engine: a `Reply` takes an answer, and says whether its caller is still
there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy.typing as npt

from iblip.engines.language_model.types import (
    Answer,
    EngineStatus,
    Event,
    Generation,
    LanguageModelEngine,
    Timing,
)
from iblip.export.errors import DeadlineError, EngineError, QueueFullError
from iblip.serving.steps.ending import end_if_fatal
from iblip.serving.steps.questions import Question
from iblip.serving.steps.turns import Turns

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""Seconds between two checks whether callers are still there."""

GRACE_S = 0.1
"""Seconds in which nobody asks after a new caller: most short answers have ended by then."""

ENCODERS = 16
"""Questions whose images are encoded at the same time: two batches of the default size."""

CHECKERS = 2
"""Questions with a JSON schema that are checked at the same time: a new schema may take a second of
a processor, and nobody else waits for it."""

ANSWERS = 1 << 16
"""Answers that are followed at the same time, at most: more than any queue holds."""

STOPPING = "the server is stopping"

Encode = Callable[[Question], npt.NDArray[Any]]
"""From a question to its visual prompt, float `[images, queries, d_llm]`."""

Decode = Callable[[Question], Question]
"""From a question with encoded images to one with their pixels."""


Check = Callable[[Question], None]
"""Refuses what the engine would refuse."""


class Reply(Protocol):
    """Takes an answer. `finish` or `fail` is called once, at the end."""

    def delta(self, text: str) -> None:
        """Sends more of the text."""

    def finish(self, answer: Answer) -> None:
        """Ends an answer whose text has been sent."""

    def fail(self, error: Exception) -> None:
        """Ends a request that has no answer, or no complete one."""

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        ...


@dataclass(frozen=True, kw_only=True)
class CallerLimits:
    """What one caller may have under way at once; `None` is no limit.

    Attributes:
        requests: that wait or run.
        tokens: the most that these may generate, together.
    """

    requests: int | None = None
    tokens: int | None = None


class Answering:
    """Takes questions, and follows each to its end.

    A question that meets a full queue is refused before anything is computed for it. JSON schemas
    are compiled by two threads, images that were sent as files are decoded by a few, and all are
    encoded by a few others, so that neither schemas nor files keep pixels waiting; what is asked
    interactively goes first. One more thread looks after all who wait: what nobody waits for any
    more frees its place, and what is past its deadline is told so, whatever it is waiting for.

    Args:
        engine: answers the questions; closed by `close`.
        encode: encodes a question's images; called from several threads at once.
        decode: decodes a question's images; likewise.
        decoders: threads that decode.
        check: refuses a question with a JSON schema before its images are decoded.
        callers: what each may have under way.
        poll_s: seconds between two looks after those who wait.
        failed: takes each error after its caller has it; by default it ends the process where the
            GPU can no longer be used.
    """

    def __init__(
        self,
        engine: LanguageModelEngine,
        encode: Encode,
        *,
        decode: Decode = lambda question: question,
        decoders: int = 1,
        check: Check = lambda question: None,
        callers: CallerLimits | None = None,
        poll_s: float = POLL_S,
        failed: Callable[[Exception], object] = end_if_fatal,
    ) -> None:
        self._engine, self._failed = engine, failed
        self._encode, self._decode, self._check = encode, decode, check
        self._limits = callers or CallerLimits()
        self._poll_s = poll_s
        self._open: dict[_Caller, None] = {}
        self._coming: set[_Caller] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._checking, self._decoding, self._encoding = self._lines = [
            _Line(self._lock, self._closed) for _ in range(3)
        ]
        self._workers = [
            threading.Thread(target=self._work, args=(line, work), name=name, daemon=True)
            for line, work, name, count in (
                (self._checking, self._ask_for_grammar, "check", CHECKERS),
                (self._decoding, self._ask_for_pixels, "decode", decoders),
                (self._encoding, self._ask, "encode", ENCODERS),
            )
            for _ in range(count)
        ]
        self._refusing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refuse")
        # A thread for each answer, and those of earlier ones again: to start one costs a short
        # answer half a millisecond.
        self._following = ThreadPoolExecutor(max_workers=ANSWERS, thread_name_prefix="answer")
        self._watcher = threading.Thread(target=self._watch, name="watch-callers", daemon=True)
        for thread in (*self._workers, self._watcher):
            thread.start()

    def answer(self, question: Question, reply: Reply) -> None:
        """Admits the question, or refuses it, and returns."""
        try:
            self._admit(_Caller(question, reply))
        except Exception as error:  # any error belongs to this caller; the process serves on
            self.refuse(reply, error)

    def check_queue(self) -> None:
        """Raises `QueueFullError` where there is no place for one more question."""
        with self._lock:
            self._engine.check_queue(len(self._coming))

    def refuse(self, reply: Reply, error: Exception) -> None:
        """Fails a request that has not been admitted, and returns.

        Another thread writes the error: that takes a message to Triton and back, in which the next
        request is read.
        """
        self._refusing.submit(_fail, reply, error)

    def status(self) -> EngineStatus:
        """The engine's, and those who wait for their images as waiting."""
        with self._lock:
            coming = len(self._coming)
        status = self._engine.status()
        return replace(status, waiting=status.waiting + coming)

    def cancel(self, key: str) -> int:
        """Cancels the questions with that secret; an empty one is of none.

        Returns:
            how many were under way.
        """
        found = [caller for caller in self._callers() if key and caller.question.cancel_key == key]
        for caller in found:
            self._give_up(caller)
        return len(found)

    def close(self) -> None:
        """Ends every question with an error, waits for the replies, and closes the engine."""
        with self._lock:
            self._closed.set()
            for line in self._lines:
                line.wake()
        self._watcher.join()
        self._refusing.shutdown()
        self._engine.close()
        for thread in self._workers:
            thread.join()
        with self._lock:
            left = [caller for line in self._lines for caller in line.callers]
        for caller in left:
            self._end(caller, EngineError(STOPPING))
        self._following.shutdown()

    def _callers(self) -> list[_Caller]:
        with self._lock:
            return list(self._open)

    def _admit(self, caller: _Caller) -> None:
        """Raises `QueueFullError` where there is no place for one more."""
        with self._lock:
            self._engine.check_queue(len(self._coming))
            if caller.question.caller is not None:
                self._check_share(caller.question)
            self._open[caller] = None
            self._coming.add(caller)
            has_schema = caller.question.options.json_schema is not None
            (self._checking if has_schema else self._line_of(caller.question)).put(caller)

    def _line_of(self, question: Question) -> _Line:
        return self._decoding if question.encoded else self._encoding

    def _check_share(self, question: Question) -> None:
        mine = [one.question for one in self._open if one.question.caller == question.caller]
        tokens = question.tokens + sum(one.tokens for one in mine)
        for what, count, most in (
            ("requests", len(mine) + 1, self._limits.requests),
            ("tokens to generate", tokens, self._limits.tokens),
        ):
            if most is not None and count > most:
                raise QueueFullError(
                    f"with this request its caller would have {count} {what} under way; expected "
                    f"at most {most}. Try again when others have ended."
                )

    def _work(self, line: _Line, work: Callable[[_Caller], None]) -> None:
        while (caller := line.take()) is not None:
            try:
                work(caller)
            except Exception as error:  # as in `answer`
                self._end(caller, error)

    def _ask_for_grammar(self, caller: _Caller) -> None:
        """Has the schema compiled, which the engine then holds."""
        self._check(caller.question)
        self._put_on(caller, caller.question)

    def _ask_for_pixels(self, caller: _Caller) -> None:
        """Has the images decoded; the files are needed no more."""
        self._put_on(caller, self._decode(caller.question))

    def _put_on(self, caller: _Caller, question: Question) -> None:
        """Puts the question, as it is now, into its next line."""
        with self._lock:
            caller.question = question
            if not caller.has_ended and not self._closed.is_set():
                self._line_of(question).put(caller)
                return
        self._end(caller, EngineError(STOPPING))  # which nobody hears who has had an end

    def _ask(self, caller: _Caller) -> None:
        """Has the images encoded, and passes the question to the engine."""
        question = caller.question
        visual_prompt = self._encode(question)
        if caller.has_ended:  # meanwhile
            return
        generation = self._engine.submit(question.request(visual_prompt))
        with self._lock:
            caller.generation = generation
            self._coming.discard(caller)
        self._following.submit(self._follow, generation, caller)
        if caller.has_ended:
            generation.cancel()

    def _follow(self, generation: Generation, caller: _Caller) -> None:
        try:
            for event in generation:
                caller.pass_on(event)
            self._forget(caller)
        except Exception as error:  # as in `answer`
            generation.cancel()
            self._end(caller, error)

    def _give_up(self, caller: _Caller) -> None:
        """Ends what nobody waits for any more."""
        if caller.generation is None:
            caller.pass_on(_cancelled(caller.question))
            self._forget(caller)
        if caller.generation is not None:  # perhaps only now: `_ask` looks after the other order
            caller.generation.cancel()

    def _end(self, caller: _Caller, error: Exception) -> None:
        self._forget(caller)
        caller.fail(error)
        self._failed(error)

    def _forget(self, caller: _Caller) -> None:
        with self._lock:
            self._open.pop(caller, None)
            self._coming.discard(caller)
            for line in self._lines:
                line.drop(caller)

    def _watch(self) -> None:
        turns = Turns[_Caller](self._poll_s)
        while not self._closed.wait(self._poll_s):
            with self._lock:
                late = [caller for caller in self._coming if caller.question.is_late]
                asked = turns.take(self._open)
            for caller in late:
                self._end(caller, DeadlineError("the answer was not finished by its deadline"))
            gone = [caller for caller in asked if caller.has_gone()]
            for caller in gone:
                self._give_up(caller)
            turns.found_gone(len(gone))


class _Line:
    """Questions that wait for the same work; the lock is held for all but `take`."""

    def __init__(self, lock: threading.Lock, closed: threading.Event) -> None:
        self.callers: list[_Caller] = []
        self._changed, self._closed = threading.Condition(lock), closed

    def put(self, caller: _Caller) -> None:
        """Adds a question at the end."""
        self.callers.append(caller)
        self._changed.notify()

    def drop(self, caller: _Caller) -> None:
        """Takes a question out, if it is there."""
        if caller in self.callers:
            self.callers.remove(caller)

    def wake(self) -> None:
        """Ends the wait of all threads, now that it is closed."""
        self._changed.notify_all()

    def take(self) -> _Caller | None:
        """Waits for the next question: the first urgent one, else the first; `None` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.callers or self._closed.is_set())
            if self._closed.is_set():
                return None
            urgent = (one for one in self.callers if one.question.is_urgent)
            caller = next(urgent, self.callers[0])
            self.callers.remove(caller)
            return caller


def _cancelled(question: Question) -> Answer:
    """The answer of a question that was cancelled before its first token."""
    waited_s = time.monotonic() - question.arrived
    return Answer(
        text="",
        token_ids=(),
        finish_reason="cancelled",
        prompt_tokens=0,
        completion_tokens=0,
        seed=None,
        timing=Timing(vision_s=waited_s, queue_s=0.0, prefill_s=0.0, decode_s=0.0),
    )


class _Caller:
    """A question and its reply, which ends once, and is not used after its end.

    Triton frees a request with its last response; asking afterwards, from another thread, whether
    it is cancelled crashes the server with a segmentation fault.
    """

    def __init__(self, question: Question, reply: Reply) -> None:
        self.question = question
        self.generation: Generation | None = None
        self.has_ended = False
        self._reply = reply
        self._lock = threading.Lock()

    def pass_on(self, event: Event) -> None:
        """Passes an event to the reply, unless it has ended before."""
        with self._lock:
            if self.has_ended:
                return
            if isinstance(event, Answer):
                self.has_ended = True
                self._reply.finish(event)
            else:
                self._reply.delta(event.text)

    def fail(self, error: Exception) -> None:
        """Passes an error to the reply, unless it has ended before."""
        with self._lock:
            if self.has_ended:
                return
            self.has_ended = True
            _fail(self._reply, error)

    def has_gone(self) -> bool:
        """Whether the reply is open but its caller no longer waits. Nobody asks after a new one."""
        if time.monotonic() - self.question.arrived < GRACE_S:
            return False
        with self._lock:
            return not self.has_ended and self._reply.is_cancelled()


def _fail(reply: Reply, error: Exception) -> None:
    try:
        reply.fail(error)
    except Exception:  # the caller has gone
        logger.exception("an error could not be sent: %s", error)
