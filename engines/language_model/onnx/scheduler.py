"""Which sequences a batch consists of, step by step: requests join and leave at every one.

A turn takes in what waits and fits, reads a piece of a prompt, and runs one step of every sequence
that is past its prompt, so that a long prompt holds nobody up. Knows nothing of threads or queues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from iblip.engines.language_model.decoding.decoding import Branch
from iblip.engines.language_model.generation import Ticket
from iblip.engines.language_model.onnx.slots import BatchModel, Prompt, Slot
from iblip.engines.language_model.totals import Totals
from iblip.export.errors import EngineError, IblipError

logger = logging.getLogger(__name__)

PIECE = 64
"""Positions of a prompt that are read at once. Always the same, whoever else is there: a sum in
another order can be another number."""


class _Job:
    """A running request: its slots, and what each of them is to read next."""

    def __init__(self, ticket: Ticket, first: Slot) -> None:
        self.ticket = ticket
        self.slots = [first]
        self.tokens: list[int] = []  # one a slot, once the prompt is read
        self.prompt: Prompt | None = None

    @property
    def reserved(self) -> int:
        """The slots that are its own, or will be."""
        return max(len(self.slots), self.ticket.decoding.width)


class Scheduler:
    """The running requests of one model.

    Args:
        model: what continues the sequences.
        totals: where tokens are counted.

    Attributes:
        wanted: slots that the next in line is waiting for.
    """

    def __init__(self, model: BatchModel, totals: Totals) -> None:
        self._model = model
        self._totals = totals
        self._jobs: list[_Job] = []
        self.wanted = 0

    @property
    def running(self) -> list[Ticket]:
        """The requests that have slots."""
        return [job.ticket for job in self._jobs]

    def fits(self, ticket: Ticket) -> bool:
        """Whether there are slots for all the rows that this request may need."""
        return ticket.decoding.width <= self._free()

    def add(self, ticket: Ticket) -> None:
        """Gives a request its slot; it must fit."""
        ticket.start()
        self._jobs.append(_Job(ticket, self._model.acquire()))

    def drop(self) -> None:
        """Frees the slots of requests that are cancelled, late, or ended from outside."""
        for job in list(self._jobs):
            if job.ticket.given_up():
                self._leave(job)

    def turn(self) -> None:
        """Reads a piece of a prompt, and runs one step."""
        reading = next((job for job in self._jobs if not job.tokens), None)
        if reading:
            self._guard([reading], partial(self._read, reading))
        stepping = [job for job in self._jobs if job.tokens and not job.ticket.ended]
        if stepping:
            self._guard(stepping, partial(self._step, stepping))

    def _read(self, job: _Job) -> None:
        ticket = job.ticket
        if job.prompt is None:
            job.prompt = self._model.read(ticket.request.visual_prompt, ticket.prompt)
        before = job.prompt.done
        logits = self._model.prefill(job.slots[0], job.prompt, PIECE)
        self._totals.prompt_tokens += job.prompt.done - before
        if logits is not None:
            ticket.prefilled()
            self._accept(job, logits[None])
        elif job.prompt.done == job.prompt.positions:
            ticket.prefilled()
            assert self._model.start_token is not None
            job.tokens = [self._model.start_token]

    def _step(self, jobs: Sequence[_Job]) -> None:
        tokens = {
            slot: token for job in jobs for slot, token in zip(job.slots, job.tokens, strict=True)
        }
        logits, start = self._model.step(tokens), 0
        for job in jobs:
            mine = logits[start : start + len(job.slots)]
            start += len(job.slots)
            self._guard([job], partial(self._accept, job, mine))

    def _accept(self, job: _Job, logits: npt.NDArray[Any]) -> None:
        ticket = job.ticket
        if ticket.given_up():
            self._leave(job)
            return
        chosen = job.reserved  # one a row, or all of the first ones
        branches = ticket.decoding.accept(logits, lambda: self._free() - self.wanted)
        self._totals.generated_tokens += chosen
        delta = ticket.decoding.take_delta()
        if delta is not None:
            ticket.put(delta)
        if branches:
            job.slots = self._branched(job.slots, branches)
            job.tokens = [branch.token for branch in branches]
        else:
            ticket.end()
            self._leave(job)

    def _branched(self, slots: Sequence[Slot], branches: Sequence[Branch]) -> list[Slot]:
        """The slots of the branches. A parent's first branch stays where the parent is."""
        chosen: dict[int, Slot] = {}  # by branch
        stay: set[Slot] = set()
        for index, branch in enumerate(branches):
            if slots[branch.parent] not in stay:
                chosen[index] = slots[branch.parent]
                stay.add(slots[branch.parent])
        spare = [slot for slot in slots if slot not in stay]
        for index, branch in enumerate(branches):
            if index not in chosen:
                chosen[index] = spare.pop() if spare else self._model.acquire()
                self._model.fork(slots[branch.parent], chosen[index])
        for slot in spare:
            self._model.release(slot)
        for index, branch in enumerate(branches):
            if branch.back:  # only now: a fork starts from what its parent was
                chosen[index].take_back(branch.back)
        return [chosen[index] for index in range(len(branches))]

    def _free(self) -> int:
        """The slots that are nobody's."""
        return self._model.capacity - sum(job.reserved for job in self._jobs)

    def _leave(self, job: _Job) -> None:
        self._jobs.remove(job)
        for slot in job.slots:
            self._model.release(slot)

    def _guard(self, jobs: Sequence[_Job], work: Callable[[], None]) -> None:
        """Does some work; where it fails, these requests end with the error."""
        try:
            work()
        except IblipError as error:
            self._fail(jobs, error)
        except Exception as error:  # whatever it is, it must reach the callers
            logger.exception("a step of the language model failed")
            failure = EngineError(f"the language model failed ({error!r})")
            failure.__cause__ = error
            self._fail(jobs, failure)

    def _fail(self, jobs: Sequence[_Job], error: IblipError) -> None:
        for job in jobs:
            job.ticket.end(error)
            if job in self._jobs:
                self._leave(job)
