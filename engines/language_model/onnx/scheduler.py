"""Continuous batching: which sequences each step runs. Requests join and leave at every step.

A turn reads a piece of one prompt, or several short ones where the model takes them together, and
runs one step of every sequence that is past its prompt, so that a long prompt delays no other
request. This module knows nothing of threads or queues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from iblip.engines.cuda.errors import find_fatal
from iblip.engines.language_model.decoding.decoding import Branch
from iblip.engines.language_model.generation import Ticket
from iblip.engines.language_model.onnx.slots import BatchModel, Prompt, Slot
from iblip.engines.language_model.totals import Totals
from iblip.export.errors import EngineError, IblipError

logger = logging.getLogger(__name__)


class _Job:
    """A running request: its slots, and the token that each of them reads next."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.slots: list[Slot] = []  # none until its prompt is read
        self.tokens: list[int] = []  # one per slot, once the prompt is read
        self.prompt: Prompt | None = None

    @property
    def reserved(self) -> int:
        """How many slots it has or may still need."""
        return max(len(self.slots), self.ticket.decoding.width)


class Scheduler:
    """The running requests of one model.

    Args:
        model: what continues the sequences.
        totals: where tokens are counted.

    Attributes:
        slots_awaited: slots that the next request in the queue is waiting for.
    """

    def __init__(self, model: BatchModel, totals: Totals) -> None:
        self._model = model
        self._totals = totals
        self._jobs: list[_Job] = []
        self.slots_awaited = 0

    @property
    def running(self) -> list[Ticket]:
        """The requests that have slots."""
        return [job.ticket for job in self._jobs]

    def fits(self, ticket: Ticket) -> bool:
        """Whether there are slots for all rows that this request may need."""
        return ticket.decoding.width <= self._count_free()

    @property
    def slots_used(self) -> int:
        """How many sequences run or wait for their prompt to be read. From any thread."""
        return sum(max(1, len(job.slots)) for job in self._jobs)

    def add(self, ticket: Ticket) -> None:
        """Reserves the slots of a request; it must fit."""
        ticket.note_start()
        self._jobs.append(_Job(ticket))

    def drop(self) -> None:
        """Frees the slots of requests that are cancelled, late, or ended from outside."""
        for job in list(self._jobs):
            if job.ticket.end_if_given_up():
                self._remove(job)

    def turn(self) -> None:
        """Reads a piece of a prompt, and runs one step."""
        reading = [job for job in self._jobs if not job.tokens][: self._model.prompts_at_once]
        for job in reading:
            # Its row is among those that every step runs, so it is taken no earlier.
            job.slots = job.slots or [self._model.acquire()]
            if job.prompt is None or not job.prompt.done:
                self._guard([job], partial(self._prepare, job))
        if reading := [job for job in reading if job.prompt and not job.ticket.ended]:
            # The others are not to blame if it fails: they are tried again.
            self._guard(reading[:1], partial(self._read, reading))
        stepping = [job for job in self._jobs if job.tokens and not job.ticket.ended]
        if stepping:
            self._guard(stepping, partial(self._step, stepping))

    def _prepare(self, job: _Job) -> None:
        """Embeds the prompt, and looks for its beginning among those that have been read by now."""
        if job.prompt is None:
            request = job.ticket.request
            job.prompt = self._model.read(request.visual_prompt, job.ticket.prompt)
        cached = self._model.reuse(job.slots[0], job.prompt)
        job.ticket.cached_prompt_tokens += cached
        self._totals.cached_prompt_tokens += cached

    def _read(self, jobs: Sequence[_Job]) -> None:
        prompts = {job.slots[0]: job.prompt for job in jobs if job.prompt}
        before = sum(prompt.done for prompt in prompts.values())
        read = self._model.prefill(prompts, self._model.piece)
        self._totals.prompt_tokens += sum(prompt.done for prompt in prompts.values()) - before
        for job in jobs:
            if job.slots[0] in read:
                logits = read[job.slots[0]]  # [vocab], after the last piece
                self._guard([job], partial(self._begin, job, logits))

    def _begin(self, job: _Job, logits: npt.NDArray[Any] | None) -> None:
        """Begins the answer, if the prompt has been read."""
        assert job.prompt
        if logits is not None:
            job.ticket.note_prefill()
            self._accept(job, logits[None])  # [1, vocab]
        elif job.prompt.done == job.prompt.positions:
            job.ticket.note_prefill()
            assert self._model.start_token is not None
            job.tokens = [self._model.start_token]

    def _step(self, jobs: Sequence[_Job]) -> None:
        tokens = {
            slot: token for job in jobs for slot, token in zip(job.slots, job.tokens, strict=True)
        }
        logits, start = self._model.step(tokens), 0  # [slots of all jobs, vocab]
        self._totals.count_step(len(tokens))
        for job in jobs:
            rows = logits[start : start + len(job.slots)]  # [slots of this job, vocab]
            start += len(job.slots)
            self._guard([job], partial(self._accept, job, rows))

    def _accept(self, job: _Job, logits: npt.NDArray[Any]) -> None:
        """Continues a job by the logits `[its slots, vocab]` of a step."""
        ticket = job.ticket
        if ticket.end_if_given_up():
            self._remove(job)
            return
        chosen = job.reserved  # one token per row; the first step chooses all rows' tokens
        branches = ticket.decoding.accept(logits, lambda: self._count_free() - self.slots_awaited)
        self._totals.generated_tokens += chosen
        delta = ticket.decoding.take_delta()
        if delta is not None:
            ticket.put(delta)
        if branches:
            job.slots = self._assign_slots(job.slots, branches)
            job.tokens = [branch.token for branch in branches]
        else:
            ticket.end()
            self._remove(job)

    def _assign_slots(self, slots: Sequence[Slot], branches: Sequence[Branch]) -> list[Slot]:
        """The slot of each branch. A parent's first branch stays in the parent's slot."""
        assigned: dict[int, Slot] = {}  # by index of the branch
        continued: set[Slot] = set()
        for index, branch in enumerate(branches):
            if slots[branch.parent] not in continued:
                assigned[index] = slots[branch.parent]
                continued.add(slots[branch.parent])
        spare = [slot for slot in slots if slot not in continued]
        forks: dict[Slot, Slot] = {}  # target to source, which is one of `continued`
        for index, branch in enumerate(branches):
            if index not in assigned:
                assigned[index] = spare.pop() if spare else self._model.acquire()
                forks[assigned[index]] = slots[branch.parent]
        if forks:
            self._model.fork(forks)
        for slot in spare:
            self._model.release(slot)
        for index, branch in enumerate(branches):
            if branch.back:  # only now: a fork copies its parent as it was
                assigned[index].take_back(branch.back)
        return [assigned[index] for index in range(len(branches))]

    def _count_free(self) -> int:
        """How many slots no request has or has reserved."""
        return self._model.capacity - sum(job.reserved for job in self._jobs)

    def _remove(self, job: _Job, *, failed: bool = False) -> None:
        self._jobs.remove(job)
        for slot in job.slots:
            # The prompt is in all of them. Where a run has failed, nobody knows what is there.
            keep = slot is job.slots[0] and not failed
            self._model.release(slot, keep=keep)

    def _guard(self, jobs: Sequence[_Job], work: Callable[[], None]) -> None:
        """Runs `work`; if it fails, the requests of these jobs end with the error.

        Raises:
            EngineError: the GPU can no longer be used, so no other request can be answered either.
        """
        try:
            work()
            return
        except IblipError as error:
            failure = error
        except Exception as error:  # whatever it is, it must reach the callers
            logger.exception("a step of the language model failed")
            failure = EngineError(f"the language model failed ({error!r})")
            failure.__cause__ = error
        if find_fatal(failure):
            raise failure  # the engine stops, and ends all its requests
        self._fail(jobs, failure)

    def _fail(self, jobs: Sequence[_Job], error: IblipError) -> None:
        for job in jobs:
            job.ticket.end(error)
            if job in self._jobs:
                self._remove(job, failed=True)
