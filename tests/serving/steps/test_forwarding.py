"""The one-answer model's requests, without Triton: a fake model that is asked, fake callers."""

from __future__ import annotations

import threading
import time

import pytest

from iblip.export.errors import QueueFullError
from iblip.serving.steps.forwarding import Forwarding
from tests.serving.steps.fakes import LIMIT_S


class FakeSender:
    """Fails the test where it is used after its response."""

    def __init__(self):
        self.response = None
        self.sent = threading.Event()
        self.gone = threading.Event()

    def send(self, response):
        assert not self.sent.is_set()
        self.response = response
        self.sent.set()

    def is_cancelled(self):
        assert not self.sent.is_set(), "Triton's own answer would be a segmentation fault"
        return self.gone.is_set()


class Model:
    """The other model: answers when it is told to, or when it is cancelled."""

    def __init__(self):
        self.cancelled = {}
        self.released = threading.Event()
        self.tries = 0

    def ask(self, key):
        mine = self.cancelled.setdefault(key, threading.Event())
        while not self.released.is_set():
            if mine.wait(0.005):
                return "cancelled"
        return "answer"

    def cancel(self, key):
        self.tries += 1
        if self.tries > 2:  # it has the request only now
            self.cancelled[key].set()


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def forwarding(model):
    made = Forwarding(model.ask, model.cancel, lambda error: error, most=4, poll_s=0.001)
    yield made
    model.released.set()
    made.close()


def test_each_request_gets_its_answer(forwarding, model):
    senders = [FakeSender() for _ in range(4)]
    for sender in senders:
        forwarding.forward(sender, lambda key: key)
    model.released.set()
    assert all(sender.sent.wait(LIMIT_S) for sender in senders)
    assert {sender.response for sender in senders} == {"answer"}


def test_one_too_many_is_refused_and_the_next_has_its_place(forwarding, model):
    senders = [FakeSender() for _ in range(5)]
    for sender in senders:
        forwarding.forward(sender, lambda key: key)
    assert isinstance(senders[4].response, QueueFullError)
    model.released.set()
    assert all(sender.sent.wait(LIMIT_S) for sender in senders[:4])
    last = FakeSender()
    forwarding.forward(last, lambda key: key)
    assert last.sent.wait(LIMIT_S)
    assert last.response == "answer"


def test_a_caller_who_has_gone_is_cancelled_until_that_is_heard(forwarding, model):
    gone, stays = FakeSender(), FakeSender()
    for sender in (gone, stays):
        forwarding.forward(sender, lambda key: key)
    gone.gone.set()
    assert gone.sent.wait(LIMIT_S)
    assert (gone.response, model.tries > 2) == ("cancelled", True)
    assert not stays.sent.is_set()


def test_a_key_cancels_those_who_gave_it_and_no_other(forwarding, model):
    senders = [FakeSender() for _ in range(3)]
    for sender, key in zip(senders, ("a", "b", ""), strict=True):
        forwarding.forward(sender, lambda key: key, key)
    assert (forwarding.cancel("a"), forwarding.cancel(""), forwarding.cancel("c")) == (1, 0, 0)
    assert senders[0].sent.wait(LIMIT_S)
    assert senders[0].response == "cancelled"
    assert not any(sender.sent.is_set() for sender in senders[1:])


def test_a_call_that_cannot_be_made_is_told_and_leaves_nothing(forwarding):
    def fail(key):
        raise RuntimeError("no such parameter")

    senders = [FakeSender() for _ in range(10)]
    for sender in senders:
        forwarding.forward(sender, fail)
    assert [str(sender.response) for sender in senders] == ["no such parameter"] * 10
    time.sleep(0.05)  # in which nothing more is asked of them


def test_a_failure_of_the_other_model_is_the_response(model):
    def fail(call):
        raise RuntimeError("it has ended")

    forwarding = Forwarding(fail, model.cancel, lambda error: error, most=4, poll_s=0.001)
    sender = FakeSender()
    forwarding.forward(sender, lambda key: key)
    assert sender.sent.wait(LIMIT_S)
    assert str(sender.response) == "it has ended"
    forwarding.close()


def test_a_thread_that_cannot_begin_is_told(forwarding, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    sender = FakeSender()
    forwarding.forward(sender, lambda key: key)
    assert str(sender.response) == "can't start new thread"


def test_a_cancellation_that_fails_ends_no_others(model):
    def cancel(key):
        if not model.tries:
            model.tries = 3
            raise RuntimeError("it is busy")
        model.cancel(key)

    forwarding = Forwarding(model.ask, cancel, lambda error: error, most=4, poll_s=0.001)
    sender = FakeSender()
    forwarding.forward(sender, lambda key: key)
    sender.gone.set()
    assert sender.sent.wait(LIMIT_S)
    forwarding.close()
