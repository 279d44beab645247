"""A language-model engine that is another process: vLLM's.

Requests wait here, in the order in which they came, until vLLM has room for their sequences; so a
full queue, a deadline and a cancellation mean what they mean on every engine. One thread sees to
all of it: it sends requests, takes tokens, and starts the process again where it has died.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from iblip.engines.language_model.answering import AnswerLimits, CompletionBuilder, settle_limits
from iblip.engines.language_model.checking import (
    check_tokens,
    check_visual_prompt,
    closed_error,
    queue_full_error,
    with_own_copy,
)
from iblip.engines.language_model.decoding.logits_processors import Words
from iblip.engines.language_model.detokenise import special_tokens
from iblip.engines.language_model.generation import Pending, QueuedGeneration
from iblip.engines.language_model.totals import Totals
from iblip.engines.language_model.types import EngineStatus, GenerationRequest
from iblip.engines.language_model.vllm.options import (
    check_options,
    params_from_options,
    prompt_positions,
)
from iblip.engines.language_model.vllm.process import Message, WorkerProcess
from iblip.engines.language_model.vllm.restarts import Restarts
from iblip.engines.language_model.vllm.sequences import Sequences
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import words_from_text
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import LanguageModelFacts, how_to_raise
from iblip.export.errors import EngineError, OptionError

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""How often requests are asked whether anybody still waits for them, in seconds."""

Receive = Callable[[WorkerProcess, Message | None], None]

Start = Callable[[Receive], WorkerProcess]
"""Starts a process that reports to what it is given."""


class _Request(Pending):
    """One request, and what vLLM must be told of it."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: PromptIds,
        limits: AnswerLimits,
        sequences: Sequences,
        banned: Words,
        totals: Totals,
    ) -> None:
        super().__init__(request, sequences.answer, totals)
        self.prompt, self.limits, self.banned = prompt, limits, banned
        self.sequences = sequences


@dataclass(frozen=True)
class _Running:
    """A sequence that vLLM works on: whose it is, and which."""

    ticket: _Request
    index: int


class VllmEngine:
    """A `LanguageModelEngine` over vLLM. A context manager: leaving closes it.

    Making one returns when vLLM is ready.

    Args:
        start: starts the process.
        prompts: the language model's tokenizer.
        facts: of the model.
        sequences: how many vLLM runs at once.
        queue_limit: how many requests may wait, those that run not counted.
        positions: how many a sequence may have; `None` is the model's own length.
        restarts: when a process that died is started again.
        stop: strings that end any answer of this model.

    Raises:
        EngineError: vLLM did not start; the message has the reason.
    """

    def __init__(
        self,
        start: Start,
        prompts: PromptTokenizer,
        facts: LanguageModelFacts,
        *,
        sequences: int,
        queue_limit: int,
        positions: int | None = None,
        restarts: Restarts | None = None,
        stop: tuple[str, ...] = (),
    ) -> None:
        self._start, self._prompts, self._stop_strings = start, prompts, stop
        self._facts = replace(
            facts, max_length=min(facts.max_length, positions or facts.max_length)
        )
        self._capacity, self._queue_limit = sequences, queue_limit
        self._totals = Totals()
        self._restarts = restarts or Restarts()
        self._special = special_tokens(prompts.tokenizer)
        self._events: SimpleQueue[tuple[WorkerProcess, Message | None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._running: dict[int, _Running] = {}
        self._numbers = itertools.count(1)
        self._process: WorkerProcess | None = None
        self._ready_at: float | None = None
        self._start_at: float | None = None
        self._reason = ""
        self._looked = 0.0
        self._gone: EngineError | None = None
        self._closed = False
        self._settled = threading.Event()  # it is ready for the first time, or never will be
        self._thread = threading.Thread(target=self._work, name="language-model", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        self._settled.wait()
        if self._gone is not None:
            self.close()
            raise self._gone

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, request: GenerationRequest) -> QueuedGeneration:
        """Queues the request and returns at once; the prompt is tokenised before it is queued.

        Raises:
            InputError: the prompt is empty, too long, or has the image token in it; the visual
                prompt is not float `[images, queries, hidden]`; or there are too many images.
            OptionError: an option that vLLM does not have, or that does not fit this model.
            QueueFullError: too many requests are waiting.
            EngineError: the engine is closed, or vLLM has died too often.
        """
        ticket = self._ticket(request)
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._gone is not None:
                raise self._gone
            self._waiting = deque(t for t in self._waiting if not t.given_up())
            if len(self._waiting) >= self._queue_limit:
                self._totals.refused()
                raise queue_full_error(len(self._waiting))
            self._waiting.append(ticket)
        self._events.put(None)
        return QueuedGeneration(ticket, partial(self._cancel, ticket))

    def status(self) -> EngineStatus:
        """See `LanguageModelEngine`. A slot is a sequence that vLLM works on."""
        running = list(self._running.values())
        return self._totals.status(
            slots=self._capacity,
            slots_used=len(running),
            running=len({one.ticket for one in running}),
            waiting=len(self._waiting),
        )

    def close(self) -> None:
        """Ends every request with `EngineError`, then the process. Harmless when repeated."""
        with self._lock:
            self._closed = True
        atexit.unregister(self.close)
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _ticket(self, request: GenerationRequest) -> _Request:
        options, facts, tokenizer = request.options, self._facts, self._prompts.tokenizer
        check_visual_prompt(request.visual_prompt, facts)
        check_options(options)
        check_tokens(options, facts)
        if options.n > self._capacity:
            raise OptionError(
                f"n is {options.n}; this engine runs {self._capacity} sequences at once, "
                f"and each answer is one. Lower it; {how_to_raise('slots')}."
            )
        prompt = self._prompts(request.prompt, len(request.visual_prompt))
        limits = settle_limits(prompt, options, facts, self._stop_strings)

        def builder() -> CompletionBuilder:
            return CompletionBuilder(options, limits, facts, tokenizer, self._special)

        banned = words_from_text(tokenizer, options.banned_words)
        sequences = Sequences(options, limits, builder)
        own = with_own_copy(request)
        return _Request(own, prompt, limits, sequences, banned, self._totals)

    def _cancel(self, ticket: _Request) -> None:
        ticket.cancelled = True
        self._events.put(None)

    # From here on all runs on the engine's own thread.

    def _work(self) -> None:
        try:
            self._launch()
            while not self._closed:
                event = self._next_event()
                if event is not None:
                    self._take(*event)
                if event is None or time.monotonic() - self._looked >= POLL_S:
                    self._drop()
                self._admit()
        except Exception as error:  # whatever it is, nobody must wait for ever
            logger.exception("the engine's thread failed")
            self._give_up(f"the language-model engine failed ({error!r})")
        self._end_all(self._gone or closed_error())
        if self._process is not None:
            self._process.stop()
        self._settled.set()

    def _next_event(self) -> tuple[WorkerProcess, Message | None] | None:
        """The next message, or nothing where it is time to look around."""
        busy = bool(self._running or self._waiting)
        left = None if self._start_at is None else max(0.0, self._start_at - time.monotonic())
        waits = [seconds for seconds in (POLL_S if busy else None, left) if seconds is not None]
        try:
            return self._events.get(timeout=min(waits) if waits else None)
        except Empty:
            return None

    def _launch(self) -> None:
        self._start_at = None
        try:
            self._process = self._start(
                lambda process, message: self._events.put((process, message))
            )
        except OSError as error:
            self._give_up(f"vLLM cannot be started ({error})")

    def _take(self, process: WorkerProcess, message: Message | None) -> None:
        if message is None:
            self._died(process)
        elif message["kind"] == "ready":
            logger.info("vLLM %s is ready", message["vllm"])
            self._ready_at = time.monotonic()
            self._settled.set()
        elif message["kind"] == "tokens":
            self._grow(message)
        elif message["id"] is None:
            self._reason = message["error"]
        elif (running := self._running.get(message["id"])) is not None:
            self._leave(running.ticket, EngineError(f"vLLM failed: {message['error']}"))

    def _grow(self, message: Message) -> None:
        running = self._running.get(message["id"])
        if running is None:  # cancelled, while these were on their way
            return
        ticket, sequences = running.ticket, running.ticket.sequences
        if not sequences.begun:
            ticket.prefilled()
            self._totals.prompt_tokens += ticket.limits.prompt_tokens
        self._totals.generated_tokens += len(message["tokens"])
        complete = sequences.accept(running.index, message)
        for delta in sequences.take_deltas():
            ticket.put(delta)
        if complete:
            del self._running[message["id"]]
            if not message["finished"]:
                self._send({"kind": "abort", "id": message["id"]})
        elif message["finished"]:
            error = EngineError("vLLM ended an answer before its end. Ask again.")
            self._leave(ticket, error)
        if sequences.done:
            ticket.end()

    def _drop(self) -> None:
        """Frees what is cancelled or late."""
        self._looked = time.monotonic()
        for ticket in {running.ticket for running in self._running.values()}:
            if ticket.given_up():
                self._leave(ticket)
        with self._lock:
            self._waiting = deque(t for t in self._waiting if not t.given_up())

    def _admit(self) -> None:
        """Sends what has room, in order; starts the process, where it is time."""
        if self._start_at is not None and time.monotonic() >= self._start_at:
            self._launch()
        while self._ready_at is not None:
            with self._lock:
                taken = len(self._running)
                if not self._waiting or taken + self._waiting[0].sequences.width > self._capacity:
                    return
                ticket = self._waiting.popleft()
            self._generate(ticket)

    def _generate(self, ticket: _Request) -> None:
        ticket.start()
        options, sequences = ticket.request.options, ticket.sequences
        visual = np.ascontiguousarray(ticket.request.visual_prompt, dtype=np.float32)
        token_ids, starts = prompt_positions(ticket.prompt, self._facts)
        for index in range(sequences.width):
            number = next(self._numbers)
            self._running[number] = _Running(ticket, index)
            params = params_from_options(
                options,
                ticket.limits,
                self._facts,
                banned=ticket.banned,
                seed=sequences.seed,
                index=index,
            )
            header: dict[str, Any] = {
                "kind": "generate",
                "id": number,
                "token_ids": token_ids,
                "visual": list(visual.shape),
                "starts": starts,
                "params": params,
            }
            self._send(header, visual.tobytes())

    def _leave(self, ticket: _Request, error: EngineError | None = None) -> None:
        """Takes a request from vLLM; where there is an error, it ends with that."""
        if error is not None:
            ticket.end(error)
        for number in [n for n, running in self._running.items() if running.ticket is ticket]:
            del self._running[number]
            self._send({"kind": "abort", "id": number})

    def _send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        if self._process is not None:
            self._process.send(header, body)

    def _died(self, process: WorkerProcess) -> None:
        """Ends what ran in it, and decides whether another is started."""
        ran_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        how = "; ".join(filter(None, [self._reason, process.epitaph()]))
        first = not self._settled.is_set()
        self._process, self._ready_at, self._reason = None, None, ""
        if first:
            self._give_up(f"vLLM did not start: {how}")
            return
        wait_s = self._restarts.ended(ran_s)
        if wait_s is None:
            ends = self._restarts.ends
            self._give_up(
                f"the vLLM process ended {ends} times in a row, and is not started again. "
                f"The last time: {how}\nRestart the server once the cause is mended."
            )
            return
        logger.error("the vLLM process ended, and is started again in %g s: %s", wait_s, how)
        self._end_running(
            EngineError(
                "the vLLM process ended while it wrote this answer, and is being started again "
                f"({process.epitaph().partition(';')[0]}). Ask again."
            )
        )
        self._start_at = time.monotonic() + wait_s

    def _give_up(self, message: str) -> None:
        self._gone = EngineError(message)
        self._end_all(self._gone)
        self._settled.set()

    def _end_running(self, error: EngineError) -> None:
        for running in list(self._running.values()):
            running.ticket.end(error)
        self._running.clear()

    def _end_all(self, error: EngineError) -> None:
        self._end_running(error)
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for ticket in waiting:
            ticket.end(error)
