"""A language-model engine in another process: vLLM's.

Requests wait here, in order of priority and arrival, until vLLM has room for their sequences; so a
full queue, a deadline and a cancellation mean the same as on every engine. One thread sends
requests, receives tokens, and restarts the process if it dies.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from iblip.engines.language_model.answering import AnswerLimits, CompletionBuilder, settle_limits
from iblip.engines.language_model.checking import (
    check_queue,
    check_tokens,
    check_visual_prompt,
    closed_error,
    copy_visual_prompt,
)
from iblip.engines.language_model.decoding.logits_processors import Words
from iblip.engines.language_model.detokenise import special_tokens
from iblip.engines.language_model.generation import Pending, QueuedGeneration
from iblip.engines.language_model.options import GenerationOptions
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
from iblip.engines.language_model.waiting import WaitingRequests
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import words_from_text
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import LanguageModelFacts, how_to_raise
from iblip.export.errors import EngineError, OptionError

logger = logging.getLogger(__name__)

POLL_S = 0.02
"""The interval, in seconds, at which requests are checked for cancellation and deadline."""

Receive = Callable[[WorkerProcess, Message | None], None]

Start = Callable[[Receive], WorkerProcess]
"""Starts a process that passes its messages to the given function."""


class _Request(Pending):
    """One request, and what vLLM needs to know of it."""

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
    """A sequence that vLLM is generating: its request, and its index there."""

    ticket: _Request
    index: int


class VllmEngine:
    """A `LanguageModelEngine` over vLLM. A context manager: leaving closes it.

    The constructor returns when vLLM is ready.

    Args:
        start: starts the process.
        prompts: tokenises prompts for the language model.
        facts: of the model.
        sequences: how many sequences vLLM runs at once.
        queue_limit: how many requests may wait, not counting those that run.
        positions: how many positions a sequence may have; `None` is the model's own length.
        restarts: when a process that died is restarted.
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
        self._waiting: WaitingRequests[_Request] = WaitingRequests()
        self._running: dict[int, _Running] = {}
        self._numbers = itertools.count(1)
        self._process: WorkerProcess | None = None
        self._ready_at: float | None = None
        self._start_at: float | None = None
        self._reason = ""
        self._polled_at = 0.0
        self._failure: EngineError | None = None
        self._closed = False
        self._settled = threading.Event()  # set once it was ready, or never will be
        self._thread = threading.Thread(target=self._work, name="language-model", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        self._settled.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, request: GenerationRequest) -> QueuedGeneration:
        """Queues the request and returns at once; the prompt is tokenised before it is queued.

        Raises:
            InputError: the prompt is empty, too long, or has the image token in it; the visual
                prompt is not float `[images, queries, hidden]`; or there are too many images.
            OptionError: vLLM does not have an option, or it does not fit this model.
            QueueFullError: too many requests are waiting.
            EngineError: the engine is closed, or vLLM has died too often.
        """
        ticket = self._make_ticket(request)
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._failure is not None:
                raise self._failure
            self._waiting.drop_given_up()
            check_queue(len(self._waiting), self._queue_limit, self._totals)
            self._waiting.add(ticket)
        self._events.put(None)
        return QueuedGeneration(ticket, partial(self._cancel, ticket))

    def check(self, prompt: str, images: int, options: GenerationOptions) -> None:
        """See `LanguageModelEngine`."""
        self._settle(prompt, images, options)

    def check_queue(self, ahead: int) -> None:
        """See `LanguageModelEngine`."""
        with self._lock:
            waiting = len(self._waiting) + max(0, ahead - self._capacity + len(self._running))
            check_queue(waiting, self._queue_limit, self._totals)

    def status(self) -> EngineStatus:
        """See `LanguageModelEngine`. A slot is a sequence that vLLM is generating."""
        running = list(self._running.values())
        return self._totals.status(
            slots=self._capacity,
            slots_used=len(running),
            running=len({sequence.ticket for sequence in running}),
            waiting=len(self._waiting),
        )

    def close(self) -> None:
        """Ends every request with `EngineError`, then the process. May be called repeatedly."""
        with self._lock:
            self._closed = True
        atexit.unregister(self.close)
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _make_ticket(self, request: GenerationRequest) -> _Request:
        options, facts, tokenizer = request.options, self._facts, self._prompts.tokenizer
        check_visual_prompt(request.visual_prompt, facts)
        prompt, limits = self._settle(request.prompt, len(request.visual_prompt), options)

        def builder() -> CompletionBuilder:
            return CompletionBuilder(options, limits, facts, tokenizer, self._special)

        banned = words_from_text(tokenizer, options.banned_words)
        sequences = Sequences(options, limits, builder)
        return _Request(
            copy_visual_prompt(request), prompt, limits, sequences, banned, self._totals
        )

    def _settle(
        self, prompt: str, images: int, options: GenerationOptions
    ) -> tuple[PromptIds, AnswerLimits]:
        check_options(options)
        check_tokens(options, self._facts)
        if options.n > self._capacity:
            raise OptionError(
                f"n is {options.n}; this engine runs {self._capacity} sequences at once, "
                f"and each answer is one. Lower it; {how_to_raise('slots')}."
            )
        ids = self._prompts(prompt, images)
        return ids, settle_limits(ids, options, self._facts, self._stop_strings)

    def _cancel(self, ticket: _Request) -> None:
        ticket.cancelled = True
        self._events.put(None)

    # Everything from here on runs on the engine's own thread.

    def _work(self) -> None:
        try:
            self._launch()
            while not self._closed:
                event = self._next_event()
                if event is not None:
                    self._handle(*event)
                if event is None or time.monotonic() - self._polled_at >= POLL_S:
                    self._drop()
                self._admit()
        except Exception as error:  # whatever it is, no caller may wait for ever
            logger.exception("the engine's thread failed")
            self._give_up(f"the language-model engine failed ({error!r})")
        self._end_all(self._failure or closed_error())
        if self._process is not None:
            self._process.stop()
        self._settled.set()

    def _next_event(self) -> tuple[WorkerProcess, Message | None] | None:
        """The next message; `None` when it is time to check requests or to start the process."""
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

    def _handle(self, process: WorkerProcess, message: Message | None) -> None:
        if message is None:
            self._handle_death(process)
        elif message["kind"] == "ready":
            logger.info("vLLM %s is ready", message["vllm"])
            self._ready_at = time.monotonic()
            self._settled.set()
        elif message["kind"] == "tokens":
            self._add_tokens(message)
        elif message["id"] is None:
            self._reason = message["error"]
        elif (running := self._running.get(message["id"])) is not None:
            self._remove(running.ticket, EngineError(f"vLLM failed: {message['error']}"))

    def _add_tokens(self, message: Message) -> None:
        running = self._running.get(message["id"])
        if running is None:  # cancelled while these tokens were on their way
            return
        ticket, sequences = running.ticket, running.ticket.sequences
        if not sequences.begun:
            ticket.note_prefill()
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
            self._remove(ticket, error)
        if sequences.done:
            ticket.end()

    def _drop(self) -> None:
        """Removes requests that are cancelled or late."""
        self._polled_at = time.monotonic()
        for ticket in {running.ticket for running in self._running.values()}:
            if ticket.end_if_given_up():
                self._remove(ticket)
        with self._lock:
            self._waiting.drop_given_up()

    def _admit(self) -> None:
        """Sends requests that fit, in order; starts the process when it is time."""
        if self._start_at is not None and time.monotonic() >= self._start_at:
            self._launch()
        while self._ready_at is not None:
            with self._lock:
                ticket, free = self._waiting.next, self._capacity - len(self._running)
                if ticket is None or ticket.sequences.width > free:
                    return
                self._waiting.remove(ticket)
            self._generate(ticket)

    def _generate(self, ticket: _Request) -> None:
        ticket.note_start()
        options, sequences = ticket.request.options, ticket.sequences
        # visual: [images, queries, hidden]
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

    def _remove(self, ticket: _Request, error: EngineError | None = None) -> None:
        """Aborts a request in vLLM; if there is an error, the request ends with it."""
        if error is not None:
            ticket.end(error)
        for number in [n for n, running in self._running.items() if running.ticket is ticket]:
            del self._running[number]
            self._send({"kind": "abort", "id": number})

    def _send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        if self._process is not None:
            self._process.send(header, body)

    def _handle_death(self, process: WorkerProcess) -> None:
        """Ends the requests that ran in the process, and decides whether it is restarted."""
        ran_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        how = "; ".join(filter(None, [self._reason, process.epitaph()]))
        first = not self._settled.is_set()
        self._process, self._ready_at, self._reason = None, None, ""
        if first:
            self._give_up(f"vLLM did not start: {how}")
            return
        wait_s = self._restarts.note_end(ran_s)
        if wait_s is None:
            ends = self._restarts.ends
            self._give_up(
                f"the vLLM process ended {ends} times in a row, and is not restarted. "
                f"The last time: {how}\nRestart the server once the cause is fixed."
            )
            return
        logger.error("the vLLM process ended, and is restarted in %g s: %s", wait_s, how)
        self._end_running(
            EngineError(
                "the vLLM process ended while it generated this answer, and is being restarted "
                f"({process.epitaph().partition(';')[0]}). Ask again."
            )
        )
        self._start_at = time.monotonic() + wait_s

    def _give_up(self, message: str) -> None:
        self._failure = EngineError(message)
        self._end_all(self._failure)
        self._settled.set()

    def _end_running(self, error: EngineError) -> None:
        for running in list(self._running.values()):
            running.ticket.end(error)
        self._running.clear()

    def _end_all(self, error: EngineError) -> None:
        self._end_running(error)
        with self._lock:
            waiting = self._waiting.take_all()
        for ticket in waiting:
            ticket.end(error)
