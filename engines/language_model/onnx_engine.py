"""A language-model engine in this process: a queue, a worker thread, one request at a time.

Requests are answered in the order in which they came. The worker owns the model; callers meet it
only through tickets, so a scheduler that steps many of them at once can take `_serve`'s place.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.language_model.answering import AnswerBuilder, plan_answer
from engines.language_model.detokenise import special_tokens
from engines.language_model.generation import QueuedGeneration, Ticket, late_error
from engines.language_model.graphs import SequenceModel
from engines.language_model.types import GenerationRequest, QueueFullError
from engines.text import PromptTokenizer
from export.errors import EngineError, IblipError, InputError
from export.manifest import LanguageModelFacts

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 256
"""Requests that may wait, unless the caller says otherwise."""

_FLOATS = tuple(np.dtype(d) for d in (np.float32, np.float16, ml_dtypes.bfloat16))


class OnnxEngine:
    """A `LanguageModelEngine` over a `SequenceModel`. A context manager: leaving closes it.

    Args:
        model: what continues sequences; the engine owns it and closes it.
        prompts: the language model's tokenizer.
        facts: of the model.
        queue_limit: how many requests may wait, the running one not counted.
    """

    def __init__(
        self,
        model: SequenceModel,
        prompts: PromptTokenizer,
        facts: LanguageModelFacts,
        *,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._facts = facts
        self._queue_limit = queue_limit
        self._special = special_tokens(prompts.tokenizer)
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="language-model", daemon=True)
        self._worker.start()
        # A daemon thread inside ONNX Runtime while the interpreter ends would crash it.
        atexit.register(self.close)

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, request: GenerationRequest) -> QueuedGeneration:
        """Queues the request and returns at once; the prompt is tokenised before it is queued.

        Raises:
            InputError: the prompt is empty, too long, or has the image token in it; or the visual
                prompt is not float `[queries, hidden]`.
            OptionError: `min_new_tokens` does not fit.
            QueueFullError: too many requests are waiting.
            EngineError: the engine is closed.
        """
        ticket = self._ticket(request)
        with self._changed:
            if self._closed:
                raise _closed_error()
            self._waiting = deque(t for t in self._waiting if not t.cancelled)
            if len(self._waiting) >= self._queue_limit:
                raise QueueFullError(
                    f"{len(self._waiting)} requests are waiting, as many as this engine takes. "
                    "Try again later."
                )
            self._waiting.append(ticket)
            self._changed.notify()
        return QueuedGeneration(ticket, self._cancel)

    def close(self) -> None:
        """Ends every request with `EngineError`, then frees the model. Harmless when repeated."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            unfinished = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for ticket in unfinished:
            ticket.end(_closed_error())
        atexit.unregister(self.close)
        if threading.current_thread() is not self._worker:
            self._worker.join()
        self._model.close()

    def _ticket(self, request: GenerationRequest) -> Ticket:
        _check_visual_prompt(request.visual_prompt, self._facts)
        prompt_ids = self._prompts(request.prompt)
        plan = plan_answer(prompt_ids, request.options, self._facts)
        tokenizer = self._prompts.tokenizer
        builder = AnswerBuilder(request.options, plan, self._facts, tokenizer, self._special)
        return Ticket(_with_own_copy(request), prompt_ids, builder)

    def _cancel(self, ticket: Ticket) -> None:
        ticket.cancelled = True
        with self._changed:
            waiting = ticket in self._waiting
            if waiting:
                self._waiting.remove(ticket)
        if waiting:
            ticket.end()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                ticket = self._running = self._waiting.popleft()
            try:
                self._serve(ticket)
            except IblipError as error:
                ticket.end(error)
            except Exception as error:  # whatever it is, it must reach the caller
                logger.exception("a request failed")
                failure = EngineError(f"the language model failed ({error!r})")
                failure.__cause__ = error
                ticket.end(failure)
            del ticket  # a waiting worker keeps nothing of the last request alive

    def _serve(self, ticket: Ticket) -> None:
        """Answers one request. Looks up between steps whether it is still wanted."""
        ticket.start()
        if _given_up(ticket):
            return
        builder = ticket.builder
        cache, logits = self._model.prefill(ticket.request.visual_prompt, ticket.prompt_ids)
        ticket.prefilled()
        while not _given_up(ticket):
            delta = builder.accept(logits)
            if delta is not None:
                ticket.put(delta)
            if builder.finish_reason:
                ticket.end()
                return
            logits = self._model.step(cache, builder.last_token)


def _given_up(ticket: Ticket) -> bool:
    """Ends a request that is cancelled or late; whether it has ended."""
    if ticket.late:
        ticket.end(late_error())
    elif ticket.cancelled:
        ticket.end()
    return ticket.ended


def _check_visual_prompt(visual_prompt: npt.NDArray[Any], facts: LanguageModelFacts) -> None:
    wanted = (facts.num_query_tokens, facts.hidden_size)
    if visual_prompt.shape != wanted or visual_prompt.dtype not in _FLOATS:
        raise InputError(
            f"the visual prompt is {visual_prompt.dtype} {list(visual_prompt.shape)}; "
            f"wanted float16 or float32 {list(wanted)}, one row of the qformer's output"
        )


def _with_own_copy(request: GenerationRequest) -> GenerationRequest:
    # The caller's array may be a buffer that is used again before the request's turn comes.
    return GenerationRequest(
        prompt=request.prompt,
        visual_prompt=np.array(request.visual_prompt),
        options=request.options,
        deadline=request.deadline,
    )


def _closed_error() -> EngineError:
    return EngineError("the language-model engine is closed")
