"""A language-model engine in this process: a queue, and a worker thread that runs the batch.

Requests are taken in order of priority and arrival, as soon as there are slots for them. The worker
owns the model; callers reach it only through tickets.
"""

from __future__ import annotations

import atexit
import logging
import threading
from dataclasses import replace
from functools import partial

from iblip.engines.cuda.errors import RESTART, find_fatal
from iblip.engines.language_model.answering import CompletionBuilder, settle_limits
from iblip.engines.language_model.checking import (
    check_queue,
    check_tokens,
    check_visual_prompt,
    closed_error,
    copy_visual_prompt,
)
from iblip.engines.language_model.decoding.decoding import Decoding, decoding_for
from iblip.engines.language_model.decoding.grammars import Grammars
from iblip.engines.language_model.detokenise import special_tokens
from iblip.engines.language_model.generation import QueuedGeneration, Ticket
from iblip.engines.language_model.onnx.scheduler import Scheduler
from iblip.engines.language_model.onnx.slots import BatchModel
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.stopping import StopTokens
from iblip.engines.language_model.totals import Totals
from iblip.engines.language_model.types import EngineStatus, GenerationRequest
from iblip.engines.language_model.waiting import BULK_PATIENCE_S, WaitingRequests
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import answers_from_text, words_from_text
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import QUEUE, LanguageModelFacts, how_to_raise
from iblip.export.errors import EngineError, OptionError

logger = logging.getLogger(__name__)


class OnnxEngine:
    """A `LanguageModelEngine` over a `BatchModel`. A context manager: leaving closes it.

    Args:
        model: continues sequences; the engine owns it and closes it.
        prompts: tokenises prompts for the language model.
        facts: of the model.
        queue_limit: how many requests may wait, not counting those that run.
        stop: strings that end any answer of this model.
        patience_s: seconds after which a waiting bulk request counts as interactive.

    Raises:
        EngineError: the model failed as it was warmed up; it is closed then.
    """

    def __init__(
        self,
        model: BatchModel,
        prompts: PromptTokenizer,
        facts: LanguageModelFacts,
        *,
        queue_limit: int = QUEUE,
        stop: tuple[str, ...] = (),
        patience_s: float = BULK_PATIENCE_S,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._facts = replace(facts, max_length=min(facts.most_positions, model.positions))
        self._totals = Totals()
        self._scheduler = Scheduler(model, self._totals)
        self._queue_limit, self._stop_strings = queue_limit, stop
        self._special = special_tokens(prompts.tokenizer)
        self._grammars = Grammars(prompts.tokenizer, facts.vocab_size, facts.eos_token_ids)
        self._waiting: WaitingRequests[Ticket] = WaitingRequests(patience_s)
        self._running: list[Ticket] = []  # for `close`, which another thread calls
        self._stop_reason = ""  # why it takes no more requests; empty while it does
        self._freed = False
        self._warm = threading.Event()
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="language-model", daemon=True)
        self._worker.start()
        # A daemon thread inside ONNX Runtime while the interpreter ends would crash it.
        atexit.register(self.close)
        self._warm.wait()
        if self._stop_reason:
            self.close()
            raise EngineError(self._stop_reason)

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, request: GenerationRequest) -> QueuedGeneration:
        """Queues the request and returns at once; the prompt is tokenised before it is queued.

        Raises:
            InputError: the prompt is empty, too long, or has the image token in it; the visual
                prompt is not float `[images, queries, hidden]`; or there are too many images.
            OptionError: `min_new_tokens` does not fit; `n` or `num_beams` is more than there are
                slots; an option names a token that the model does not have; a candidate is too
                long; or `json_schema` cannot be used.
            QueueFullError: too many requests are waiting.
            EngineError: the engine is closed, or has failed.
        """
        ticket = self._make_ticket(request)
        with self._changed:
            if self._stop_reason:
                raise EngineError(self._stop_reason)
            self._waiting.drop_given_up()
            check_queue(len(self._waiting), self._queue_limit, self._totals)
            self._waiting.add(ticket)
            self._changed.notify()
        return QueuedGeneration(ticket, partial(self._cancel, ticket))

    def check(self, prompt: str, images: int, options: GenerationOptions) -> None:
        """See `LanguageModelEngine`."""
        self._settle(prompt, images, options)

    def check_queue(self, ahead: int) -> None:
        """See `LanguageModelEngine`."""
        with self._changed:
            free = self._model.capacity - self._scheduler.slots_used
            waiting = len(self._waiting) + max(0, ahead - free)
            check_queue(waiting, self._queue_limit, self._totals)

    def status(self) -> EngineStatus:
        """See `LanguageModelEngine`."""
        with self._changed:  # so that no request is between the queue and its slot
            return self._totals.status(
                slots=self._model.capacity,
                slots_used=self._scheduler.slots_used,
                running=len(self._scheduler.running),
                waiting=len(self._waiting),
            )

    def close(self) -> None:
        """Ends every request with `EngineError`, then frees the model. May be called repeatedly."""
        self._stop(str(closed_error()))
        atexit.unregister(self.close)
        if threading.current_thread() is not self._worker:
            self._worker.join()
        with self._changed:
            freed, self._freed = self._freed, True
        if not freed:
            self._model.close()

    def _stop(self, reason: str) -> None:
        """Accepts no more requests, and ends those that it has."""
        with self._changed:
            self._stop_reason = self._stop_reason or reason
            unfinished = [*self._waiting.take_all(), *self._running]
            self._changed.notify()
        for ticket in unfinished:
            ticket.end(EngineError(reason))

    def _make_ticket(self, request: GenerationRequest) -> Ticket:
        check_visual_prompt(request.visual_prompt, self._facts)
        images = len(request.visual_prompt)
        prompt, decoding = self._settle(request.prompt, images, request.options)
        return Ticket(copy_visual_prompt(request), prompt, decoding, self._totals)

    def _settle(
        self, prompt: str, images: int, options: GenerationOptions
    ) -> tuple[PromptIds, Decoding]:
        facts, tokenizer = self._facts, self._prompts.tokenizer
        ids = self._prompts(prompt, images)
        self._check_fit(options)
        schema = options.json_schema
        # The model's own stop strings may be part of a JSON string: a grammar knows the end itself.
        limits = settle_limits(ids, options, facts, self._stop_strings if schema is None else ())

        def builder() -> CompletionBuilder:
            return CompletionBuilder(options, limits, facts, tokenizer, self._special)

        banned = words_from_text(tokenizer, options.banned_words)
        stops = StopTokens(tokenizer, limits.stop)
        candidates = self._tokenise_candidates(options, limits.max_tokens)
        grammar = None if schema is None else self._grammars.compiled(schema)
        return ids, decoding_for(
            options, limits, facts, builder, banned, candidates, stops, grammar
        )

    def _tokenise_candidates(self, options: GenerationOptions, limit: int) -> list[tuple[int, ...]]:
        """The token ids of each candidate; refuses those that the model cannot generate."""
        closed = self._facts.is_encoder_decoder
        token_ids = answers_from_text(self._prompts.tokenizer, options.candidates, closed=closed)
        for text, ids in zip(options.candidates, token_ids, strict=True):
            shown = repr(text if len(text) <= 40 else f"{text[:40]}…")
            if len(ids) > limit:
                raise OptionError(
                    f"candidates has {shown}, which has {len(ids)} tokens; at most {limit} fit "
                    "behind this prompt. Shorten it or leave it out."
                )
            if len(ids) <= closed or max(ids) >= self._facts.vocab_size:
                raise OptionError(f"candidates has {shown}, which this model's tokens cannot spell")
        return token_ids

    def _check_fit(self, options: GenerationOptions) -> None:
        """Refuses token ids that the model does not have, and more rows than it has slots."""
        check_tokens(options, self._facts)
        for name in ("n", "num_beams"):
            if getattr(options, name) > self._model.capacity:
                raise OptionError(
                    f"{name} is {getattr(options, name)}; this engine has {self._model.capacity}"
                    f" slots, and each sequence takes one. Lower it; {how_to_raise('slots')}."
                )

    def _cancel(self, ticket: Ticket) -> None:
        ticket.cancelled = True
        with self._changed:
            waiting = self._waiting.remove(ticket)
        if waiting:
            ticket.end()

    def _work(self) -> None:
        try:
            self._model.warm_up()  # in this thread: captured graphs are a thread's own
            self._warm.set()
            while self._admit():
                self._scheduler.turn()
                self._scheduler.drop()
            self._scheduler.drop()
        except Exception as error:  # no caller may wait for a worker that has ended
            logger.exception("the language-model engine stopped")
            remedy = RESTART if find_fatal(error) else "Start it again."
            self._stop(f"the language-model engine stopped ({error!r}). {remedy}")
        finally:
            self._warm.set()

    def _admit(self) -> bool:
        """Admits requests that fit, in order; waits if there are none. `False` at the end."""
        with self._changed:
            self._running = self._scheduler.running
            self._changed.wait_for(lambda: self._waiting or self._running or self._stop_reason)
            self._waiting.drop_given_up()
            while (ticket := self._waiting.next) and self._scheduler.fits(ticket):
                self._scheduler.add(ticket)
                self._running = self._scheduler.running
                self._waiting.remove(ticket)  # only now: if `add` fails, it is still queued
            self._scheduler.slots_awaited = ticket.decoding.width if ticket else 0
            return not self._stop_reason
