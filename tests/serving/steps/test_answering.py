"""Questions on their way to an engine and back, without Triton: a fake engine, fake callers."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, TextDelta, Timing
from iblip.export.errors import DeadlineError, EngineError, InputError, QueueFullError
from iblip.serving.steps.answering import CHECKERS, ENCODERS, Answering, CallerLimits
from iblip.serving.steps.questions import Question
from iblip.serving.steps.turns import MOST, Turns

LOST = EngineError("ONNX Runtime failed (CUDA failure 700: an illegal memory access ; GPU=0)")


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
            event = self.events.get(timeout=10)
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


@pytest.fixture
def answering():
    opened = []

    def make(
        *generations, encode=encode, decode=decode, decoders=1, check=encode, queue=1000, **limits
    ):
        engine = FakeEngine(*generations)
        engine.queue = queue
        how = {
            "decode": decode,
            "decoders": decoders,
            "check": check,
            "callers": CallerLimits(**limits),
        }
        opened.append(Answering(engine, encode, **how, poll_s=0.001))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_deltas_then_the_finish(answering):
    reply = FakeReply()
    deltas = [TextDelta(text="a ", token_ids=(1,)), TextDelta(text="7", token_ids=(2,))]
    answering(FakeGeneration([*deltas, answer("a 7")])).answer(question(), reply)
    assert reply.ended.wait(10)
    assert reply.texts == ["a ", "7"]
    assert reply.end.text == "a 7"


def test_answers_are_followed_by_the_threads_of_earlier_ones(answering):
    running = answering(*[FakeGeneration([answer("7")]) for _ in range(50)])
    replies = [FakeReply() for _ in range(50)]
    for reply in replies:
        running.answer(question(), reply)
        assert reply.ended.wait(10)
    assert len({reply.ender for reply in replies}) < 25


@pytest.mark.parametrize("error", [QueueFullError("256 wait"), InputError("too long")])
def test_a_request_that_the_engine_refuses_fails(answering, error):
    reply = FakeReply()
    answering(error).answer(question(), reply)
    assert reply.ended.wait(10)
    assert reply.end is error


def test_an_engines_failure_reaches_its_caller_after_the_text(answering):
    reply = FakeReply()
    error = EngineError("broken")
    answering(FakeGeneration([TextDelta(text="a", token_ids=(1,)), error])).answer(
        question(), reply
    )
    assert reply.ended.wait(10)
    assert reply.texts == ["a"]
    assert reply.end is error


def test_a_caller_who_goes_before_the_first_text_frees_the_engine(answering):
    generation, reply = FakeGeneration(), FakeReply()
    answering(generation).answer(question(), reply)
    assert generation.submitted.wait(10)
    reply.gone.set()
    assert generation.cancelled.wait(10)
    assert reply.ended.wait(10)
    assert reply.end.finish_reason == "cancelled"


def test_a_question_is_cancelled_by_its_secret_and_no_other_is(answering):
    generations, replies = [FakeGeneration() for _ in range(3)], [FakeReply() for _ in range(3)]
    running = answering(*generations)
    for reply, key in zip(replies, ("one", "two", ""), strict=True):
        running.answer(question(cancel_key=key), reply)
    assert running.cancel("two") == 1
    assert replies[1].ended.wait(10)
    assert [reply.ended.is_set() for reply in replies] == [False, True, False]
    assert running.cancel("three") == running.cancel("") == 0


def test_a_cancellation_harms_no_later_question_of_that_secret(answering):
    reply = FakeReply()
    running = answering(FakeGeneration([answer("7")]))
    assert running.cancel("1") == 0
    running.answer(question(cancel_key="1"), reply)
    assert reply.ended.wait(10)
    assert reply.end.text == "7"


class Gate:
    """Encodes once it is opened; counts."""

    def __init__(self):
        self.opened = threading.Event()
        self.count = 0

    def __call__(self, question):
        self.count += 1
        assert self.opened.wait(10)
        return encode(question)


def test_schemas_that_take_long_keep_nobody_else_waiting(answering):
    gate, others = Gate(), [FakeReply(), FakeReply()]
    running = answering(FakeGeneration([answer("7")]), FakeGeneration([answer("8")]), check=gate)
    schemas = [FakeReply() for _ in range(ENCODERS + 8)]
    for number, reply in enumerate(schemas):
        options = GenerationOptions(json_schema={"const": number})
        running.answer(question(options=options), reply)
    for other, asked in zip(others, (question(), sent()), strict=True):
        running.answer(asked, other)
        assert other.ended.wait(10)
    assert [other.end.text for other in others] == ["7", "8"]
    assert not any(reply.ended.is_set() for reply in schemas)
    assert gate.count == CHECKERS
    gate.opened.set()


def test_a_full_queue_refuses_before_an_image_is_encoded(answering):
    gate, replies = Gate(), [FakeReply() for _ in range(3)]
    running = answering(*(FakeGeneration([answer("7")]) for _ in range(2)), encode=gate, queue=2)
    for reply in replies:
        running.answer(question(), reply)
    assert replies[2].ended.wait(10)
    assert isinstance(replies[2].end, QueueFullError)
    with pytest.raises(QueueFullError):
        running.check_queue()
    gate.opened.set()
    assert all(reply.ended.wait(10) for reply in replies)
    assert [reply.end.text for reply in replies[:2]] == ["7", "7"]
    assert gate.count == 2


def test_files_are_decoded_and_then_encoded(answering):
    seen, reply = [], FakeReply()

    def encode_pixels(asked):
        seen.append((asked.encoded, len(asked.pixels)))
        return encode(asked)

    running = answering(FakeGeneration([answer("7")]), encode=encode_pixels)
    running.answer(sent(), reply)
    assert reply.ended.wait(10)
    assert reply.end.text == "7"
    assert seen == [((), 1)]


def test_a_file_that_takes_long_keeps_no_pixels_waiting_and_holds_its_place(answering):
    gate = Gate()

    def decode_once_opened(asked):
        gate(asked)
        return decode(asked)

    running = answering(
        *(FakeGeneration([answer("7")]) for _ in range(5)), decode=decode_once_opened, queue=4
    )
    slow, quick, refused = [FakeReply() for _ in range(3)], FakeReply(), FakeReply()
    for reply in slow:
        running.answer(sent(), reply)
    running.answer(question(), quick)
    assert quick.ended.wait(10)
    assert not any(reply.ended.is_set() for reply in slow)
    running.answer(sent(), slow_too := FakeReply())
    running.answer(sent(), refused)
    assert refused.ended.wait(10)
    assert isinstance(refused.end, QueueFullError)
    gate.opened.set()
    assert all(reply.ended.wait(10) for reply in (*slow, slow_too))


@pytest.mark.parametrize("how", ["gone", "late"])
def test_a_file_that_nobody_waits_for_is_not_decoded_or_not_encoded(answering, how):
    gate, encoded = Gate(), []

    def decode_once_opened(asked):
        gate(asked)
        return decode(asked)

    def count(asked):
        encoded.append(asked)
        return encode(asked)

    running = answering(decode=decode_once_opened, encode=count)
    replies = [FakeReply(), FakeReply()]
    facts = {"deadline": time.monotonic() + 0.05} if how == "late" else {}
    for reply in replies:
        running.answer(sent(**facts), reply)
    while not gate.count:
        time.sleep(0.001)
    for reply in replies if how == "gone" else ():
        reply.gone.set()
    assert all(reply.ended.wait(10) for reply in replies)
    gate.opened.set()
    running.close()
    assert (gate.count, encoded) == (1, [])


def test_a_file_that_is_none_is_its_askers_trouble_alone(answering):
    def decode_some(asked):
        if asked.caller:
            raise InputError("it is no image")
        return decode(asked)

    replies = [FakeReply(), FakeReply()]
    running = answering(FakeGeneration([answer("7")]), decode=decode_some)
    running.answer(sent(caller="b"), replies[0])
    running.answer(sent(), replies[1])
    assert all(reply.ended.wait(10) for reply in replies)
    assert str(replies[0].end) == "it is no image"
    assert replies[1].end.text == "7"


def test_a_refusal_that_triton_takes_its_time_for_keeps_no_request_waiting(answering):
    taken = threading.Event()

    class Slow(FakeReply):
        def fail(self, error):
            assert taken.wait(10)
            super().fail(error)

    slow, next_one = Slow(), FakeReply()
    running = answering(FakeGeneration([answer("7")]))
    running.refuse(slow, InputError("the prompt is empty"))
    running.answer(question(), next_one)
    assert next_one.ended.wait(10)
    assert not slow.ended.is_set()
    taken.set()
    assert slow.ended.wait(10)


def test_images_of_callers_who_have_gone_are_not_encoded(answering):
    gate = Gate()
    first, others = [FakeReply() for _ in range(ENCODERS)], [FakeReply() for _ in range(3)]
    running = answering(*(FakeGeneration([answer("7")]) for _ in range(ENCODERS + 1)), encode=gate)
    for reply in [*first, *others]:
        running.answer(question(), reply)
    for reply in others[:2]:
        reply.gone.set()
    assert all(reply.ended.wait(10) for reply in others[:2])
    assert not any(reply.ended.is_set() for reply in [*first, others[2]])
    gate.opened.set()
    assert all(reply.ended.wait(10) for reply in [*first, others[2]])
    assert gate.count == ENCODERS + 1


def test_a_caller_who_goes_while_images_are_encoded_costs_the_engine_nothing(answering):
    gate, reply, generation = Gate(), FakeReply(), FakeGeneration()
    running = answering(generation, encode=gate)
    running.answer(question(), reply)
    reply.gone.set()
    assert reply.ended.wait(10)
    assert reply.end.finish_reason == "cancelled"
    gate.opened.set()
    running.close()
    assert running._engine.running == []


def test_a_deadline_is_kept_whatever_a_question_waits_for(answering):
    gate, encoding, waiting = Gate(), FakeReply(), [FakeReply() for _ in range(ENCODERS + 3)]
    running = answering(encode=gate)
    for reply in (encoding, *waiting):
        running.answer(question(deadline=time.monotonic() + 0.05), reply)
    assert all(reply.ended.wait(10) for reply in (encoding, *waiting))
    assert all(isinstance(reply.end, DeadlineError) for reply in (encoding, *waiting))
    assert gate.count <= ENCODERS
    gate.opened.set()  # what was encoded is not asked: there is no generation


def test_images_of_interactive_questions_are_encoded_first(answering):
    gate, order = Gate(), []

    def encode_in_order(asked):
        if asked.caller:
            order.append(asked.caller)
        return gate(asked)

    generations = (FakeGeneration([answer("7")]) for _ in range(ENCODERS + 4))
    running = answering(*generations, encode=encode_in_order)
    first, replies = [FakeReply() for _ in range(ENCODERS)], []
    for reply in first:
        running.answer(question(), reply)
    while gate.count < ENCODERS:
        time.sleep(0.001)
    long_ago = time.monotonic() - 60
    for name, facts in (
        ("bulk", {"priority": "bulk"}),
        ("interactive", {}),
        ("late bulk", {"priority": "bulk"}),
        ("patient bulk", {"priority": "bulk", "arrived": long_ago}),
    ):
        replies.append(FakeReply())
        running.answer(question(**{"arrived": time.monotonic(), **facts}, caller=name), replies[-1])
    gate.opened.set()
    assert all(reply.ended.wait(10) for reply in (*first, *replies))
    assert set(order[:2]) == {"interactive", "patient bulk"}


def test_images_that_cannot_be_encoded_are_the_askers_trouble_alone(answering):
    def encode_some(question):
        if question.caller:
            raise EngineError("no picture")
        return encode(question)

    replies = [FakeReply(), FakeReply()]
    running = answering(FakeGeneration([answer("7")]), encode=encode_some)
    running.answer(question(caller="b"), replies[0])
    running.answer(question(), replies[1])
    assert all(reply.ended.wait(10) for reply in replies)
    assert str(replies[0].end) == "no picture"
    assert replies[1].end.text == "7"


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
    assert replies[2].ended.wait(10)
    assert isinstance(replies[2].end, QueueFullError)
    assert told in str(replies[2].end)
    assert not any(replies[index].ended.is_set() for index in (0, 1, 3))


def test_nothing_is_asked_of_a_reply_after_its_end(answering):
    # Triton's own answer to that question is a segmentation fault.
    replies = [FakeReply() for _ in range(50)]
    running = answering(*(FakeGeneration([answer("x")]) for _ in replies))
    for reply in replies:
        running.answer(question(), reply)
    assert all(reply.ended.wait(10) for reply in replies)
    assert not any(reply.asked_late for reply in replies)


def test_a_caller_who_has_just_come_is_not_asked_after(answering, monkeypatch):
    monkeypatch.setattr("iblip.serving.steps.answering.GRACE_S", 3600.0)
    generation, reply = FakeGeneration(), FakeReply()
    reply.gone.set()
    answering(generation).answer(question(arrived=time.monotonic()), reply)
    assert generation.submitted.wait(10)
    assert not generation.cancelled.wait(0.2)  # several looks after those who wait
    generation.events.put(answer("red"))
    assert reply.ended.wait(10)
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
    assert first.cancelled.wait(10)
    assert whole.ended.wait(10)
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
    assert replies[1].ended.wait(10)
    running.close()
    assert told == [(LOST, [LOST]), (LOST, [LOST, LOST])]


def test_closing_ends_what_is_running():
    reply = FakeReply()
    running = Answering(FakeEngine(FakeGeneration()), encode, poll_s=0.001)
    running.answer(question(), reply)
    running.close()
    assert isinstance(reply.end, EngineError)
