"""Many requests at once: who is in the batch, who waits, what a request of many rows gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from iblip.engines.cuda.errors import find_fatal
from iblip.engines.language_model.types import TextDelta
from iblip.export.errors import DeadlineError, EngineError, OptionError, QueueFullError

Make = Callable[..., Any]


@pytest.fixture
def gated(engine: Make, scripted: Make) -> Make:
    """`gated(capacity)`: a model whose steps wait for permits, and an engine around it."""

    def make(capacity: int, script: str = "It is red.", **options: Any) -> tuple[Any, Any]:
        model = scripted(script, capacity=capacity)
        model.gate = threading.Semaphore(0)
        return model, engine(model, **options)

    return make


def test_requests_join_and_leave_at_every_step(gated: Make, ask: Make) -> None:
    model, one = gated(3)
    first = one.submit(ask(max_new_tokens=9))
    model.gate.release()
    model.wait_for_steps(1)
    second, third = one.submit(ask(max_new_tokens=8)), one.submit(ask(max_new_tokens=2))
    fourth = one.submit(ask(max_new_tokens=3))  # has to wait for a slot
    model.gate.release(1000)
    answers = [generation.result() for generation in (first, second, third, fourth)]
    assert [answer.text for answer in answers] == ["It is red", "It is re", "It", "It "]
    assert model.batches[0] == 1
    assert max(model.batches) == 3
    assert model.steps < 8 + 7 + 1 + 2  # what it takes one at a time
    assert model.live == []


def test_no_step_runs_the_row_of_a_prompt_that_waits(gated: Make, ask: Make) -> None:
    """A row is taken when its prompt is read: until then steps would run it in vain."""
    model, one = gated(6)
    rows = []
    read = model.prefill

    def prefill(prompts: Any, limit: int) -> Any:
        rows.append((len(model.live), one.status().slots_used))
        return read(prompts, limit)

    model.prefill = prefill
    first = one.submit(ask(max_new_tokens=9))
    model.gate.release()
    model.wait_for_steps(1)
    others = [one.submit(ask(max_new_tokens=9)) for _ in range(5)]
    model.gate.release(1000)
    assert [generation.result().text for generation in (first, *others)] == ["It is red"] * 6
    assert [live for live, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert [used for _, used in rows] == [1, 6, 6, 6, 6, 6]


def test_a_long_prompt_does_not_stall_the_others(gated: Make, ask: Make) -> None:
    model, one = gated(2, script="x" * 100, max_length=10_000)
    short = one.submit(ask(max_new_tokens=50))
    model.gate.release()
    model.wait_for_steps(1)
    long = one.submit(ask("y" * 400, max_new_tokens=2))
    model.gate.release(1000)
    assert (long.result().text, short.result().text) == ("xx", "x" * 50)
    pieces = model.pieces[1:]
    assert [count for count, _ in pieces] == [64, 64, 64, 64, 64, 64, 21]
    steps = [step for _, step in pieces]
    assert steps == list(range(steps[0], steps[0] + 7))  # a step between any two pieces


def test_prompts_that_the_model_takes_together_are_read_in_one_turn(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    model.prompts_at_once, prefill = 3, model.prefill
    runs: list[int] = []

    def together(prompts: Any, limit: int) -> Any:
        runs.append(len(prompts))
        if len(runs) == 2:
            raise EngineError("no memory")  # the first's alone: the others are tried again
        return {slot: prefill({slot: prompt}, limit)[slot] for slot, prompt in prompts.items()}

    model.prefill = together
    running = one.submit(ask("running", temperature=1.0, seed=1, n=4, max_new_tokens=2))
    others = [one.submit(ask(name)) for name in ("a", "b", "c")]  # wait for slots, all at once
    model.gate.release(1000)
    with pytest.raises(EngineError, match="no memory"):
        others[0].result()
    assert [other.result().text for other in others[1:]] == ["It is red."] * 2
    assert running.result().text == "It"
    assert runs == [1, 3, 2]
    assert model.live == []


def test_the_forks_of_a_step_are_one_call(gated: Make, ask: Make) -> None:
    model, one = gated(5)
    model.gate.release(1000)
    calls, fork = [], model.fork

    def forked(targets: Any) -> None:
        calls.append(len(targets))
        assert not set(targets) & set(targets.values())
        fork(targets)

    model.fork = forked
    one.submit(ask(num_beams=5, max_new_tokens=8)).result()
    assert calls[0] == 4
    assert len(calls) <= model.steps + 1


def test_the_first_to_come_is_the_first_to_be_served(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    running = one.submit(ask("running", temperature=1.0, seed=1, n=3))
    model.gate.release()
    model.wait_for_steps(1)
    wide = one.submit(ask("wide", num_beams=4))
    narrow = one.submit(ask("narrow"))  # would fit at once, but is not the first
    model.gate.release(1000)
    for generation in (running, wide, narrow):
        generation.result()
    assert model.prompts == ["running", "wide", "narrow"]
    assert model.live == []


def test_a_cancelled_request_frees_its_slots_within_a_step(gated: Make, ask: Make) -> None:
    model, one = gated(3, script="x" * 200, max_length=5000)
    beams = one.submit(ask(num_beams=2, max_new_tokens=150))
    other = one.submit(ask(max_new_tokens=100))
    model.gate.release(3)
    model.wait_for_steps(3)
    beams.cancel()
    waiting = one.submit(ask(num_beams=2, max_new_tokens=5))
    model.gate.release(6)
    assert beams.result().finish_reason == "cancelled"
    assert waiting.result().text == "xxxxx"
    model.gate.release(1000)
    assert other.result().text == "x" * 100
    assert model.live == []


def test_a_vanished_caller_frees_its_slot(gated: Make, ask: Make) -> None:
    model, one = gated(1, script="x" * 2000, max_length=5000)
    model.gate.release(3)
    for event in one.submit(ask(max_new_tokens=1900)):
        assert isinstance(event, TextDelta)
        break
    model.gate.release(5000)
    assert one.submit(ask(max_new_tokens=3)).result().text == "xxx"
    assert model.steps < 1000
    assert model.live == []


def test_a_failing_step_fails_those_who_were_in_it(gated: Make, ask: Make) -> None:
    model, one = gated(2)
    model.error = RuntimeError("boom")
    generations = [one.submit(ask(num_beams=2)), one.submit(ask("after"))]
    model.gate.release(1000)
    with pytest.raises(EngineError, match="boom"):
        generations[0].result()
    assert generations[1].result().text == "It is red."
    assert model.live == []


def test_an_engine_that_stops_leaves_nobody_waiting(gated: Make, ask: Make) -> None:
    model, one = gated(2)
    cancelled, other = one.submit(ask()), one.submit(ask())
    waiting = one.submit(ask())
    model.gate.release()
    model.wait_for_steps(1)
    model.release = lambda slot, keep: 1 / 0  # a fault that is no request's
    cancelled.cancel()
    model.gate.release(2)
    assert cancelled.result().finish_reason == "cancelled"
    for generation in (other, waiting):
        with pytest.raises(EngineError, match=r"engine stopped \("):
            generation.result()
    with pytest.raises(EngineError, match=r"stopped .* Start it again"):
        one.submit(ask())


@pytest.mark.parametrize(
    "message",
    [
        "Error in execution: Status Message: CUDA error cudaErrorLaunchFailure:unspecified",
        "CUDA failure 719: unspecified launch failure ; GPU=0",
    ],
)
def test_a_gpu_that_is_lost_ends_every_request_with_its_name(
    gated: Make, ask: Make, message: str
) -> None:
    model, one = gated(1)
    running, waiting = one.submit(ask()), one.submit(ask())
    model.gate.release()
    model.wait_for_steps(1)
    model.error = EngineError(message)
    model.gate.release(1000)
    for generation in (running, waiting):
        with pytest.raises(
            EngineError, match=r"stopped .*no longer use the GPU: restart"
        ) as caught:
            generation.result()
        assert find_fatal(caught.value) == "cudaErrorLaunchFailure"
    with pytest.raises(EngineError, match="no longer use the GPU"):
        one.submit(ask())


def test_a_fault_while_requests_are_admitted_leaves_nobody_waiting(gated: Make, ask: Make) -> None:
    model, one = gated(3)
    running = one.submit(ask())
    model.gate.release()
    model.wait_for_steps(1)
    acquire = model.acquire

    def acquire_once() -> Any:
        model.acquire = lambda: 1 / 0
        return acquire()

    model.acquire = acquire_once
    late = [one.submit(ask()), one.submit(ask())]
    model.gate.release(2)
    for generation in (running, *late):
        with pytest.raises(EngineError, match=r"engine stopped \("):
            generation.result()


def test_the_status_says_what_runs_and_what_has_ended(gated: Make, ask: Make) -> None:
    model, one = gated(4, queue_limit=2)
    wide = one.submit(ask("wide", temperature=1.0, seed=1, n=3, max_new_tokens=4))
    model.gate.release()
    model.wait_for_steps(1)
    late = one.submit(ask(num_beams=2, deadline=0.0))
    waiting = [one.submit(ask(num_beams=2)) for _ in range(2)]
    with pytest.raises(QueueFullError):
        one.submit(ask())
    now = one.status()
    assert (now.slots, now.slots_used, now.running, now.waiting) == (4, 3, 1, 2)
    assert now.requests["refused"] == now.requests["late"] == 1
    assert now.prompt_tokens == 4 + 1 + len("wide")
    waiting[0].cancel()
    model.gate.release(1000)
    assert wide.result().finish_reason == "length"
    assert waiting[1].result().finish_reason == "eos"
    with pytest.raises(DeadlineError):
        late.result()
    one.close()
    end = one.status()
    assert (end.slots, end.slots_used, end.running, end.waiting) == (4, 0, 0, 0)
    assert end.requests == {
        **dict.fromkeys(["eos", "length", "cancelled", "late", "refused"], 1),
        **dict.fromkeys(["stop", "ranked", "failed", "invalid"], 0),
    }


def test_tokens_and_ends_are_counted(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    model.gate.release(1000)
    totals = []
    for options in ({}, {"max_new_tokens": 3}, {"stop": [" red"]}, {"num_beams": 4}):
        before = one.status()
        answer = one.submit(ask(**options)).result()
        after = one.status()
        assert after.requests[answer.finish_reason] == before.requests[answer.finish_reason] + 1
        assert after.decode_s >= before.decode_s
        totals.append(after.generated_tokens - before.generated_tokens)
    assert totals == [11, 3, 9, 4 * 11]
    assert sum(one.status().requests.values()) == 4


def test_options_that_forbid_every_token_are_no_failure_of_the_engine(
    gated: Make, ask: Make
) -> None:
    model, one = gated(2)
    model.gate.release(1000)
    schema = {"type": "array", "items": {"const": 1}, "minItems": 9}
    other = one.submit(ask())
    with pytest.raises(OptionError, match=r"json_schema, with .* forbids every token"):
        one.submit(ask(json_schema=schema, no_repeat_ngram_size=1)).result()
    assert other.result().text == "It is red."
    assert (one.status().requests["invalid"], one.status().requests["failed"]) == (1, 0)


def test_a_caller_who_vanishes_from_the_queue_is_counted(gated: Make, ask: Make) -> None:
    model, one = gated(1)
    running = one.submit(ask())
    model.gate.release()
    model.wait_for_steps(1)
    one.submit(ask())  # nobody keeps it
    last = one.submit(ask())
    assert one.status().requests["cancelled"] == 1
    model.gate.release(1000)
    assert running.result().text == last.result().text == "It is red."


def test_one_bad_request_leaves_its_neighbours_alone(gated: Make, ask: Make) -> None:
    model, one = gated(2, script="ab" * 50)
    good = one.submit(ask(max_new_tokens=9))
    bad = one.submit(ask(no_repeat_ngram_size=1, logit_bias=dict.fromkeys(range(256), -100)))
    late = one.submit(ask(deadline=0.0))
    model.gate.release(1000)
    assert good.result().text == "ababababa"
    assert bad.result().finish_reason in ("eos", "length")
    with pytest.raises(DeadlineError):
        late.result()


def test_several_answers_share_one_prefill(gated: Make, ask: Make) -> None:
    model, one = gated(3, script="abc")
    model.gate.release(1000)
    generation = one.submit(ask(temperature=4.0, seed=5, n=3, max_new_tokens=12))
    *deltas, answer = generation
    assert "".join(delta.text for delta in deltas) == answer.text
    assert len(model.prompts) == 1
    assert len(answer.others) == 2
    assert len({answer.token_ids, *(other.token_ids for other in answer.others)}) == 3
    alone = one.submit(ask(temperature=4.0, seed=5, max_new_tokens=12)).result()
    assert alone.token_ids == answer.token_ids
    assert answer.seed == 5


def test_beams_show_the_whole_text_at_the_end(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    model.gate.release(1000)
    delta, answer = one.submit(ask(num_beams=4, n=2))
    assert (delta.text, answer.text) == ("It is red.", "It is red.")
    assert answer.finish_reason == "eos"
    assert answer.score == pytest.approx(0, abs=0.1)
    assert answer.score > answer.others[0].score
    stopped = one.submit(ask(num_beams=4, stop=[" red"])).result()
    assert (stopped.text, stopped.finish_reason) == ("It is", "stop")


def test_a_stop_token_ends_the_answer_before_it(gated: Make, ask: Make) -> None:
    model, one = gated(1)
    model.gate.release(1000)
    answer = one.submit(ask(stop_token_ids=[ord("r")])).result()
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("It is ", "stop", 7)


def test_a_banned_word_is_not_said(gated: Make, ask: Make) -> None:
    model, one = gated(1)
    model.gate.release(1000)
    assert one.submit(ask(banned_words=["red"])).result().text == "It is re~."


def test_log_probabilities_are_reported(gated: Make, ask: Make) -> None:
    model, one = gated(1, script="ab")
    model.gate.release(1000)
    answer = one.submit(ask(logprobs=2)).result()
    assert [found.token_id for found in answer.logprobs] == [ord("a"), ord("b"), 256]
    rest = np.log(np.exp(10.0) + np.exp(5.0) + 258)
    assert answer.logprobs[0].top == (
        (ord("a"), pytest.approx(10 - rest, abs=1e-5)),
        (ord("~"), pytest.approx(5 - rest, abs=1e-5)),
    )
    assert one.submit(ask()).result().logprobs is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 5}, "num_beams is 5; this engine has 4 slots"),
        ({"n": 5, "temperature": 1.0}, "n is 5; this engine has 4 slots"),
        ({"stop_token_ids": [260]}, "stop_token_ids has token 260; this model's tokens are 0 to"),
        ({"logit_bias": {"999": 1}}, "logit_bias has token 999"),
    ],
)
def test_what_does_not_fit_the_engine_is_refused(
    gated: Make, ask: Make, options: dict[str, Any], message: str
) -> None:
    _, one = gated(4)
    with pytest.raises(OptionError, match=message):
        one.submit(ask(**options))


def test_a_full_queue_refuses(gated: Make, ask: Make) -> None:
    model, one = gated(2, queue_limit=1)
    running = [one.submit(ask())]
    model.gate.release()
    model.wait_for_steps(1)
    running.append(one.submit(ask()))
    model.gate.release(2)
    model.wait_for_steps(3)
    assert model.batches[-1] == 2
    running.append(one.submit(ask()))
    with pytest.raises(QueueFullError, match="1 requests are waiting"):
        one.submit(ask())
    model.gate.release(1000)
    assert {generation.result().text for generation in running} == {"It is red."}
