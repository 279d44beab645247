"""Images of questions, decoded and encoded before an engine answers: order, limits, failures."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import EngineError, InputError, QueueFullError
from iblip.serving.steps.answering import CHECKERS, ENCODERS
from tests.serving.steps.fakes import (
    LIMIT_S,
    FakeGeneration,
    FakeReply,
    Gate,
    answer,
    decode,
    encode,
    question,
    sent,
)


def test_schemas_that_take_long_keep_nobody_else_waiting(answering):
    gate, others = Gate(), [FakeReply(), FakeReply()]
    running = answering(FakeGeneration([answer("7")]), FakeGeneration([answer("8")]), check=gate)
    schemas = [FakeReply() for _ in range(ENCODERS + 8)]
    for number, reply in enumerate(schemas):
        options = GenerationOptions(json_schema={"const": number})
        running.answer(question(options=options), reply)
    for other, asked in zip(others, (question(), sent()), strict=True):
        running.answer(asked, other)
        assert other.ended.wait(LIMIT_S)
    assert [other.end.text for other in others] == ["7", "8"]
    gate.wait_for(CHECKERS)
    assert not any(reply.ended.is_set() for reply in schemas)
    assert gate.count == CHECKERS
    gate.opened.set()


def test_a_full_queue_refuses_before_an_image_is_encoded(answering):
    gate, replies = Gate(), [FakeReply() for _ in range(3)]
    running = answering(*(FakeGeneration([answer("7")]) for _ in range(2)), encode=gate, queue=2)
    for reply in replies:
        running.answer(question(), reply)
    assert replies[2].ended.wait(LIMIT_S)
    assert isinstance(replies[2].end, QueueFullError)
    with pytest.raises(QueueFullError):
        running.check_queue()
    gate.opened.set()
    assert all(reply.ended.wait(LIMIT_S) for reply in replies)
    assert [reply.end.text for reply in replies[:2]] == ["7", "7"]
    assert gate.count == 2


def test_files_are_decoded_and_then_encoded(answering):
    seen, reply = [], FakeReply()

    def encode_pixels(asked):
        seen.append((asked.encoded, len(asked.pixels)))
        return encode(asked)

    running = answering(FakeGeneration([answer("7")]), encode=encode_pixels)
    running.answer(sent(), reply)
    assert reply.ended.wait(LIMIT_S)
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
    assert quick.ended.wait(LIMIT_S)
    assert not any(reply.ended.is_set() for reply in slow)
    running.answer(sent(), slow_too := FakeReply())
    running.answer(sent(), refused)
    assert refused.ended.wait(LIMIT_S)
    assert isinstance(refused.end, QueueFullError)
    gate.opened.set()
    assert all(reply.ended.wait(LIMIT_S) for reply in (*slow, slow_too))


@pytest.mark.parametrize("how", ["gone", "late"])
def test_a_file_that_nobody_waits_for_is_not_decoded_or_not_encoded(answering, monkeypatch, how):
    gate, encoded, clock = Gate(), [], SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("iblip.serving.steps.questions.time", clock)

    def decode_once_opened(asked):
        gate(asked)
        return decode(asked)

    def count(asked):
        encoded.append(asked)
        return encode(asked)

    running = answering(decode=decode_once_opened, encode=count)
    replies = [FakeReply(), FakeReply()]
    for reply in replies:
        running.answer(sent(deadline=1.0), reply)
    gate.wait_for(1)
    if how == "late":
        clock.monotonic = lambda: 1.0
    for reply in replies if how == "gone" else ():
        reply.gone.set()
    assert all(reply.ended.wait(LIMIT_S) for reply in replies)
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
    assert all(reply.ended.wait(LIMIT_S) for reply in replies)
    assert str(replies[0].end) == "it is no image"
    assert replies[1].end.text == "7"


def test_images_of_callers_who_have_gone_are_not_encoded(answering):
    gate = Gate()
    first, others = [FakeReply() for _ in range(ENCODERS)], [FakeReply() for _ in range(3)]
    running = answering(*(FakeGeneration([answer("7")]) for _ in range(ENCODERS + 1)), encode=gate)
    for reply in [*first, *others]:
        running.answer(question(), reply)
    for reply in others[:2]:
        reply.gone.set()
    assert all(reply.ended.wait(LIMIT_S) for reply in others[:2])
    assert not any(reply.ended.is_set() for reply in [*first, others[2]])
    gate.opened.set()
    assert all(reply.ended.wait(LIMIT_S) for reply in [*first, others[2]])
    assert gate.count == ENCODERS + 1


def test_a_caller_who_goes_while_images_are_encoded_costs_the_engine_nothing(answering):
    gate, reply, generation = Gate(), FakeReply(), FakeGeneration()
    running = answering(generation, encode=gate)
    running.answer(question(), reply)
    reply.gone.set()
    assert reply.ended.wait(LIMIT_S)
    assert reply.end.finish_reason == "cancelled"
    gate.opened.set()
    running.close()
    assert running._engine.running == []


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
    gate.wait_for(ENCODERS)
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
    assert all(reply.ended.wait(LIMIT_S) for reply in (*first, *replies))
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
    assert all(reply.ended.wait(LIMIT_S) for reply in replies)
    assert str(replies[0].end) == "no picture"
    assert replies[1].end.text == "7"
