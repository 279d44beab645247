"""Questions on their way to an engine and back, without Triton: a fake engine, fake callers."""

from __future__ import annotations

import threading
import time

import pytest

from iblip.engines.language_model.types import TextDelta
from iblip.export.errors import DeadlineError, EngineError, InputError, QueueFullError
from iblip.serving.steps.answering import ENCODERS, Answering
from iblip.serving.steps.turns import MOST, Turns
from tests.serving.steps.fakes import (
    LIMIT_S,
    FakeEngine,
    FakeGeneration,
    FakeReply,
    Gate,
    answer,
    encode,
    question,
)

LOST = EngineError("ONNX Runtime failed (CUDA failure 700: an illegal memory access ; GPU=0)")


def test_deltas_then_the_finish(answering):
    reply = FakeReply()
    deltas = [TextDelta(text="a ", token_ids=(1,)), TextDelta(text="7", token_ids=(2,))]
    answering(FakeGeneration([*deltas, answer("a 7")])).answer(question(), reply)
    assert reply.ended.wait(LIMIT_S)
    assert reply.texts == ["a ", "7"]
    assert reply.end.text == "a 7"


def test_answers_are_followed_by_the_threads_of_earlier_ones(answering):
    running = answering(*[FakeGeneration([answer("7")]) for _ in range(50)])
    replies = [FakeReply() for _ in range(50)]
    for reply in replies:
        running.answer(question(), reply)
        assert reply.ended.wait(LIMIT_S)
    assert len({reply.ender for reply in replies}) < 25


@pytest.mark.parametrize("error", [QueueFullError("256 wait"), InputError("too long")])
def test_a_request_that_the_engine_refuses_fails(answering, error):
    reply = FakeReply()
    answering(error).answer(question(), reply)
    assert reply.ended.wait(LIMIT_S)
    assert reply.end is error


def test_an_engines_failure_reaches_its_caller_after_the_text(answering):
    reply = FakeReply()
    error = EngineError("broken")
    answering(FakeGeneration([TextDelta(text="a", token_ids=(1,)), error])).answer(
        question(), reply
    )
    assert reply.ended.wait(LIMIT_S)
    assert reply.texts == ["a"]
    assert reply.end is error


def test_a_caller_who_goes_before_the_first_text_frees_the_engine(answering):
    generation, reply = FakeGeneration(), FakeReply()
    answering(generation).answer(question(), reply)
    assert generation.submitted.wait(LIMIT_S)
    reply.gone.set()
    assert generation.cancelled.wait(LIMIT_S)
    assert reply.ended.wait(LIMIT_S)
    assert reply.end.finish_reason == "cancelled"


def test_a_question_is_cancelled_by_its_secret_and_no_other_is(answering):
    generations, replies = [FakeGeneration() for _ in range(3)], [FakeReply() for _ in range(3)]
    running = answering(*generations)
    for reply, key in zip(replies, ("one", "two", ""), strict=True):
        running.answer(question(cancel_key=key), reply)
    assert running.cancel("two") == 1
    assert replies[1].ended.wait(LIMIT_S)
    assert [reply.ended.is_set() for reply in replies] == [False, True, False]
    assert running.cancel("three") == running.cancel("") == 0


def test_a_cancellation_harms_no_later_question_of_that_secret(answering):
    reply = FakeReply()
    running = answering(FakeGeneration([answer("7")]))
    assert running.cancel("1") == 0
    running.answer(question(cancel_key="1"), reply)
    assert reply.ended.wait(LIMIT_S)
    assert reply.end.text == "7"


def test_a_refusal_that_triton_takes_its_time_for_keeps_no_request_waiting(answering):
    taken = threading.Event()

    class Slow(FakeReply):
        def fail(self, error):
            assert taken.wait(LIMIT_S)
            super().fail(error)

    slow, next_one = Slow(), FakeReply()
    running = answering(FakeGeneration([answer("7")]))
    running.refuse(slow, InputError("the prompt is empty"))
    running.answer(question(), next_one)
    assert next_one.ended.wait(LIMIT_S)
    assert not slow.ended.is_set()
    taken.set()
    assert slow.ended.wait(LIMIT_S)


def test_a_deadline_is_kept_whatever_a_question_waits_for(answering):
    gate, encoding, waiting = Gate(), FakeReply(), [FakeReply() for _ in range(ENCODERS + 3)]
    running = answering(encode=gate)
    for reply in (encoding, *waiting):
        running.answer(question(deadline=time.monotonic() + 0.05), reply)
    assert all(reply.ended.wait(LIMIT_S) for reply in (encoding, *waiting))
    assert all(isinstance(reply.end, DeadlineError) for reply in (encoding, *waiting))
    assert gate.count <= ENCODERS
    gate.opened.set()  # what was encoded is not asked: there is no generation


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"requests": 2}, "would have 3 requests under way; expected at most 2"),
        ({"tokens": 25}, "would have 30 tokens to generate under way; expected at most 25"),
    ],
)
def test_a_caller_has_a_limit_of_its_own(answering, limits, told):
    generations, replies = [FakeGeneration() for _ in range(4)], [FakeReply() for _ in range(4)]
    running = answering(*generations, **limits)
    for reply, caller in zip(replies, ("a", "a", "a", "b"), strict=True):
        running.answer(question(caller=caller, tokens=10), reply)
    assert replies[2].ended.wait(LIMIT_S)
    assert isinstance(replies[2].end, QueueFullError)
    assert told in str(replies[2].end)
    assert not any(replies[index].ended.is_set() for index in (0, 1, 3))


def test_nothing_is_asked_of_a_reply_after_its_end(answering):
    # Triton's own answer to that question is a segmentation fault.
    replies = [FakeReply() for _ in range(50)]
    running = answering(*(FakeGeneration([answer("x")]) for _ in replies))
    for reply in replies:
        running.answer(question(), reply)
    assert all(reply.ended.wait(LIMIT_S) for reply in replies)
    assert not any(reply.asked_late for reply in replies)


def test_a_caller_who_has_just_come_is_not_asked_after(answering, monkeypatch):
    monkeypatch.setattr("iblip.serving.steps.answering.GRACE_S", 3600.0)
    generation, reply = FakeGeneration(), FakeReply()
    reply.gone.set()
    answering(generation).answer(question(arrived=time.monotonic()), reply)
    assert generation.submitted.wait(LIMIT_S)
    assert not generation.cancelled.wait(0.2)  # several looks after those who wait
    generation.events.put(answer("red"))
    assert reply.ended.wait(LIMIT_S)
    assert reply.end.text == "red"


def test_callers_are_asked_after_in_turns_however_many_there_are():
    waiting, turns, looks = dict.fromkeys(range(250)), Turns(0.4), []
    for _ in range(7):
        looks.append(turns.take(waiting))
        turns.found_gone(0)
    assert [len(look) for look in looks] == [40] * 7
    assert [one for look in looks for one in look][:250] == list(range(250))
    assert Turns(0.4).take({"one": None}) == ["one"]


def test_more_are_asked_after_while_callers_turn_out_to_have_gone():
    waiting, turns, sizes = dict.fromkeys(range(1000)), Turns(0.02), []
    while waiting:
        gone = turns.take(waiting)
        for one in gone:
            del waiting[one]
        turns.found_gone(len(gone))
        sizes.append(len(gone))
    assert sizes[:7] == [2, 4, 8, 16, 32, 64, 64]
    assert max(sizes) == MOST
    waiting = dict.fromkeys(range(1000))
    turns.found_gone(len(turns.take(waiting)) // 2 - 1)
    assert len(turns.take(waiting)) == 2


def test_a_reply_that_cannot_be_sent_cancels_the_answer_and_spares_the_others(answering):
    class Broken(FakeReply):
        def delta(self, text):
            raise RuntimeError("the caller has gone")

    broken, whole = Broken(), FakeReply()
    first = FakeGeneration([TextDelta(text="a", token_ids=(1,))])
    running = answering(first, FakeGeneration([answer("b")]))
    running.answer(question(), broken)
    running.answer(question(), whole)
    assert first.cancelled.wait(LIMIT_S)
    assert whole.ended.wait(LIMIT_S)
    assert whole.end.text == "b"


def test_what_ends_the_process_is_told_after_the_caller_knows_it():
    told = []
    replies = [FakeReply(), FakeReply()]

    def failed(error):
        told.append((error, [reply.end for reply in replies if reply.ended.is_set()]))

    engine = FakeEngine(FakeGeneration([LOST]), LOST)
    running = Answering(engine, encode, poll_s=0.001, failed=failed)
    running.answer(question(), replies[0])
    while not told:
        time.sleep(0.001)
    running.answer(question(), replies[1])
    assert replies[1].ended.wait(LIMIT_S)
    running.close()
    assert told == [(LOST, [LOST]), (LOST, [LOST, LOST])]


def test_closing_ends_what_is_running():
    reply = FakeReply()
    running = Answering(FakeEngine(FakeGeneration()), encode, poll_s=0.001)
    running.answer(question(), reply)
    running.close()
    assert isinstance(reply.end, EngineError)
