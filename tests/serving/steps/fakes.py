"""A fake engine and fake callers around the real step that answers, without Triton."""

from __future__ import annotations

import queue
import threading

import numpy as np

from iblip.engines.language_model.types import Answer, Timing
from iblip.export.errors import EngineError, QueueFullError
from iblip.serving.steps.questions import Question

LIMIT_S = 60
"""Longest wait for what another thread does; a busy machine takes its time."""

PIXELS = np.zeros((1, 4, 6, 3), np.uint8)


def question(**facts):
    return Question(prompt="What?", pixels=PIXELS, **facts)


def encode(question):
    return np.zeros((1, 8, 4), np.float32)


def decode(question):
    return question.decoded(PIXELS)


def sent(**facts):
    return question(encoded=(b"a file",), **facts)


def answer(text, reason="eos"):
    return Answer(
        text=text,
        token_ids=(),
        finish_reason=reason,
        prompt_tokens=1,
        completion_tokens=1,
        seed=None,
        timing=Timing(vision_s=0, queue_s=0, prefill_s=0, decode_s=0),
    )


class FakeGeneration:
    """Hands out events as the test puts them in; cancelled, it ends as an engine's would."""

    def __init__(self, events=()):
        self.events = queue.SimpleQueue()
        self.submitted, self.cancelled = threading.Event(), threading.Event()
        for event in events:
            self.events.put(event)

    def __iter__(self):
        while True:
            event = self.events.get(timeout=LIMIT_S)
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Answer):
                return

    def cancel(self):
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.events.put(answer("", "cancelled"))


class FakeEngine:
    def __init__(self, *generations):
        self.generations = list(generations)
        self.running = []
        self.queue = 1000

    def check_queue(self, ahead):
        if ahead >= self.queue:
            raise QueueFullError(f"{ahead} wait")

    def submit(self, request):
        generation = self.generations.pop(0)
        if isinstance(generation, Exception):
            raise generation
        self.running.append(generation)
        generation.submitted.set()
        return generation

    def close(self):
        for generation in self.running:
            generation.events.put(EngineError("the engine is closed"))


class FakeReply:
    """Collects; fails the test where it is used after its end."""

    def __init__(self):
        self.texts = []
        self.end = None
        self.ended = threading.Event()
        self.gone = threading.Event()
        self.asked_late = False

    def delta(self, text):
        assert not self.ended.is_set()
        self.texts.append(text)

    def finish(self, answer):
        self._end(answer)

    def fail(self, error):
        self._end(error)

    def is_cancelled(self):
        self.asked_late |= self.ended.is_set()
        return self.gone.is_set()

    def _end(self, end):
        assert not self.ended.is_set()
        self.end, self.ender = end, threading.current_thread()
        self.ended.set()


class Gate:
    """Encodes once it is opened; counts."""

    def __init__(self):
        self.opened = threading.Event()
        self.count = 0
        self._counted = threading.Condition()

    def __call__(self, question):
        with self._counted:
            self.count += 1
            self._counted.notify_all()
        assert self.opened.wait(LIMIT_S)
        return encode(question)

    def wait_for(self, count):
        """Until so many have come to it."""
        with self._counted:
            assert self._counted.wait_for(lambda: self.count >= count, LIMIT_S)
