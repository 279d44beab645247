"""The engine, as a caller sees it: events, ends, queue, cancellation, deadlines, closing."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from iblip.engines.language_model.types import Answer, TextDelta
from iblip.export.errors import DeadlineError, EngineError, InputError, OptionError, QueueFullError

Make = Callable[..., Any]


def test_an_answer_is_deltas_and_then_itself(engine: Make, scripted: Make, ask: Make) -> None:
    *deltas, answer = engine(scripted("It is red.")).submit(ask())
    assert "".join(delta.text for delta in deltas) == answer.text == "It is red."
    assert [t for delta in deltas for t in delta.token_ids] == list(b"It is red.")
    assert answer.token_ids == tuple(b"It is red.")
    assert answer.finish_reason == "eos"
    assert answer.completion_tokens == 11  # the end-of-sequence token among them
    assert answer.prompt_tokens == 4 + 1 + len("What?")
    assert answer.seed is None
    assert min(answer.timing.queue_s, answer.timing.prefill_s, answer.timing.decode_s) >= 0


def test_an_engine_is_warm_when_it_is_open(engine: Make, scripted: Make) -> None:
    model = scripted()
    engine(model)
    assert model.warm
    cold = scripted()
    cold.warm_up = lambda: 1 / 0
    with pytest.raises(EngineError, match=r"engine stopped .*ZeroDivisionError"):
        engine(cold)
    assert cold.closed


def test_the_end_can_be_read_again(engine: Make, scripted: Make, ask: Make) -> None:
    generation = engine(scripted()).submit(ask())
    answer = generation.result()
    assert generation.result() == answer
    assert list(generation) == [answer]


def test_no_delta_is_empty_and_characters_are_whole(
    engine: Make, scripted: Make, ask: Make
) -> None:
    *deltas, answer = engine(scripted("größe 🦉!")).submit(ask())
    assert [delta.text for delta in deltas] == list("größe 🦉!")
    assert len(next(d for d in deltas if d.text == "🦉").token_ids) == 4
    assert answer.text == "größe 🦉!"


@pytest.mark.parametrize(
    ("options", "changes", "length"),
    [
        ({"max_new_tokens": 3}, {}, 3),
        ({}, {"default_max_new_tokens": 5}, 5),
        ({}, {"default_max_new_tokens": 500, "max_length": 17}, 7),
        ({"max_new_tokens": 500}, {"max_length": 17}, 7),
        ({"max_new_tokens": 500}, {"max_length": 17, "is_encoder_decoder": True}, 17),
    ],
)
def test_an_answer_ends_at_its_length(
    engine: Make, scripted: Make, ask: Make, options: Any, changes: Any, length: int
) -> None:
    model = scripted("x" * 100, positions=changes.get("max_length", 10_000))  # as a graph's are
    answer = engine(model, **changes).submit(ask(**options)).result()
    assert answer.text == "x" * length
    assert answer.finish_reason == "length"
    assert answer.completion_tokens == length


@pytest.mark.parametrize(
    ("options", "changes", "length"),
    [
        ({"max_length": 13}, {}, 3),  # 4 of the image, 6 of the prompt
        ({"max_length": 13}, {"max_length": 12}, 2),
        ({"max_length": 13}, {"is_encoder_decoder": True}, 12),  # the start token
    ],
)
def test_max_length_counts_as_transformers_does(
    engine: Make, scripted: Make, ask: Make, options: Any, changes: Any, length: int
) -> None:
    answer = engine(scripted("x" * 100), **changes).submit(ask(**options)).result()
    assert (answer.text, answer.completion_tokens) == ("x" * length, length)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"max_length": 10}, {}, "max_length is 10; image and prompt take 10 of it"),
        ({"max_length": 1}, {"is_encoder_decoder": True}, "the start token takes 1 of it"),
        ({"min_length": 20, "max_new_tokens": 5}, {}, "min_length is 20, which is 10 tokens"),
        ({"echo": True}, {"is_encoder_decoder": True}, "echo is true; this model is an encoder-d"),
    ],
)
def test_a_length_that_does_not_fit_the_prompt_is_refused(
    engine: Make, scripted: Make, ask: Make, options: Any, changes: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        engine(scripted(), **changes).submit(ask(**options))


def test_min_length_counts_image_and_prompt(engine: Make, scripted: Make, ask: Make) -> None:
    running = engine(scripted("abc"))
    plain, longer = (running.submit(ask(**o)).result() for o in ({}, {"min_length": 15}))
    assert (plain.finish_reason, plain.text) == ("eos", "abc")
    assert longer.text.startswith("abc")
    assert len(longer.token_ids) >= 5


def test_the_prompt_can_come_first(engine: Make, scripted: Make, ask: Make) -> None:
    *deltas, answer = engine(scripted("It is? No.")).submit(ask(echo=True, stop=["?"]))
    assert "".join(delta.text for delta in deltas) == answer.text == "What?It is"
    assert [t for delta in deltas for t in delta.token_ids] == list(answer.token_ids[:-1])
    assert answer.token_ids[-len(b"What?It is?") :] == tuple(b"What?It is?")
    assert answer.completion_tokens == len("It is?")
    assert answer.prompt_tokens == len(answer.token_ids) - answer.completion_tokens


def test_a_stop_string_across_tokens_ends_the_answer_before_it(
    engine: Make, scripted: Make, ask: Make
) -> None:
    model = scripted("It is red. ###Human: what")
    *deltas, answer = engine(model).submit(ask(stop=[". ##", "zz"]))
    assert answer.text == "".join(d.text for d in deltas) == "It is red"
    assert answer.finish_reason == "stop"
    assert answer.token_ids == tuple(b"It is red. ##")
    assert model.steps == len("It is red. ##") - 1


@pytest.mark.parametrize(("limit", "reason"), [(500, "eos"), (10, "length")])
def test_what_only_begins_a_stop_string_is_shown_in_the_end(
    engine: Make, scripted: Make, ask: Make, limit: int, reason: str
) -> None:
    generation = engine(scripted("It is red#")).submit(ask(stop=["##"], max_new_tokens=limit))
    *deltas, answer = generation
    assert answer.text == "".join(d.text for d in deltas) == "It is red#"
    assert answer.finish_reason == reason


def test_a_broken_character_at_the_end_is_decoded_as_at_once(
    engine: Make, scripted: Make, ask: Make
) -> None:
    *deltas, answer = engine(scripted("ab🦉".encode()[:-1])).submit(ask())
    assert answer.text == "".join(d.text for d in deltas) == "ab\N{REPLACEMENT CHARACTER}"


def test_min_new_tokens_forbids_the_end_until_then(engine: Make, scripted: Make, ask: Make) -> None:
    answer = engine(scripted("red")).submit(ask(min_new_tokens=6)).result()
    assert answer.text == "red~re"[:4] + "red"
    assert answer.finish_reason == "eos"


def test_a_models_own_stop_strings_end_an_answer_besides_the_requests(
    engine: Make, scripted: Make, ask: Make
) -> None:
    one = engine(scripted("It is red.##\n### Human: more"), stop=("###",))
    *deltas, answer = one.submit(ask(max_new_tokens=60))
    assert answer.text == "".join(d.text for d in deltas) == "It is red.##\n"
    assert answer.finish_reason == "stop"
    assert one.submit(ask(stop=["red"])).result().text == "It is "
    ranked = one.submit(ask(candidates=["It", "is"])).result()
    assert ranked.finish_reason == "ranked"


def test_every_position_of_every_image_counts(engine: Make, scripted: Make, ask: Make) -> None:
    one = engine(scripted("x" * 90), max_length=24)
    answer = one.submit(ask("abc", images=3)).result()  # 12 positions, BOS and three bytes
    assert (answer.prompt_tokens, answer.completion_tokens) == (16, 8)
    with pytest.raises(InputError, match=r"the prompt has 12 tokens; at most 11 fit\. 3 images"):
        one.submit(ask("a" * 11, images=3))
    with pytest.raises(InputError, match="the request has 5 images; expected 1 to 4"):
        one.submit(ask(images=5))


def test_equal_seeds_give_equal_answers(engine: Make, scripted: Make, ask: Make) -> None:
    one = engine(scripted("It is red."))
    first, again, other = (
        one.submit(ask(temperature=5.0, seed=seed)).result() for seed in (1, 1, 2)
    )
    assert first.token_ids == again.token_ids != other.token_ids
    assert first.seed == again.seed == 1
    drawn = one.submit(ask(temperature=5.0)).result()
    assert one.submit(ask(temperature=5.0, seed=drawn.seed)).result().token_ids == drawn.token_ids


def test_the_penalty_counts_the_prompt_of_a_decoder_only_model(
    engine: Make, scripted: Make, ask: Make
) -> None:
    # "R" was said in the prompt, so the second choice wins over it.
    answer = engine(scripted("R")).submit(ask("R?", repetition_penalty=3.0, max_new_tokens=1))
    assert answer.result().text == "~"


def test_the_penalty_does_not_count_the_prompt_of_an_encoder_decoder(
    engine: Make, scripted: Make, ask: Make
) -> None:
    one = engine(scripted("R"), is_encoder_decoder=True, decoder_start_token_id=0)
    assert one.submit(ask("R?", repetition_penalty=3.0, max_new_tokens=1)).result().text == "R"


def test_requests_are_answered_in_order(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted()
    model.gate = threading.Semaphore(0)
    one = engine(model)
    generations = [one.submit(ask(f"question {n}")) for n in range(5)]
    model.gate.release(1000)
    assert all(generation.result().text == "It is red." for generation in generations)
    assert model.prompts == [f"question {n}" for n in range(5)]


def test_many_threads_ask_at_once(engine: Make, scripted: Make, ask: Make) -> None:
    one = engine(scripted())
    texts: list[str] = []

    def work() -> None:
        texts.extend(one.submit(ask(f"q{n}")).result().text for n in range(5))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == ["It is red."] * 60


def test_cancelling_in_the_middle_keeps_what_was_said(
    engine: Make, scripted: Make, ask: Make
) -> None:
    model = scripted("It is red.")
    model.gate = threading.Semaphore(3)
    one = engine(model)
    generation = one.submit(ask())
    events = iter(generation)
    shown = [next(events).text for _ in range(4)]
    generation.cancel()
    model.gate.release()  # the step in which the worker waits
    *rest, answer = events
    assert rest == []
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(shown) == "It i"
    assert model.steps == 4
    model.gate.release(1000)
    assert one.submit(ask()).result().finish_reason == "eos"


def test_cancelling_while_waiting_answers_at_once(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted()
    model.gate = threading.Semaphore(0)
    one = engine(model)
    running, waiting = one.submit(ask("first")), one.submit(ask("second"))
    waiting.cancel()
    answer = waiting.result()  # although the first one has not moved
    assert (answer.finish_reason, answer.text, answer.completion_tokens) == ("cancelled", "", 0)
    model.gate.release(1000)
    assert running.result().text == "It is red."
    assert model.prompts == ["first"]


def test_cancelling_an_answer_that_is_complete_changes_nothing(
    engine: Make, scripted: Make, ask: Make
) -> None:
    generation = engine(scripted()).submit(ask())
    answer = generation.result()
    generation.cancel()
    assert generation.result() == answer


def test_a_caller_that_is_gone_frees_the_engine(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted("x" * 1000)
    model.gate = threading.Semaphore(2)
    one = engine(model, max_length=5000)
    generation = one.submit(ask(max_new_tokens=1000))
    assert isinstance(next(iter(generation)), TextDelta)
    model.wait_for_steps(2)
    del generation
    gc.collect()
    model.gate.release(5000)
    assert one.submit(ask(max_new_tokens=1)).result().text == "x"
    assert model.steps < 1000


def test_a_full_queue_refuses_and_vanished_requests_do_not_fill_it(
    engine: Make, scripted: Make, ask: Make
) -> None:
    model = scripted()
    model.gate = threading.Semaphore(1)
    one = engine(model, queue_limit=2)
    running = one.submit(ask("running"))
    model.wait_for_steps(1)  # so it waits no longer
    waiting = [one.submit(ask("waiting")) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        one.submit(ask("one too many"))
    del waiting
    gc.collect()
    last = one.submit(ask("last"))
    model.gate.release(1000)
    assert running.result().text == last.result().text == "It is red."
    assert model.prompts == ["running", "last"]


def test_a_deadline_passes_while_waiting(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted()
    model.gate = threading.Semaphore(0)
    one = engine(model)
    running = one.submit(ask("first"))
    late = one.submit(ask("late", deadline=time.monotonic() - 1))
    with pytest.raises(DeadlineError, match="deadline"):
        late.result()
    with pytest.raises(DeadlineError):
        late.result()
    model.gate.release(1000)
    assert running.result().text == "It is red."
    assert one.submit(ask("next")).result().text == "It is red."
    assert model.prompts == ["first", "next"]


def test_a_deadline_passes_in_the_middle(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted("x" * 50)
    model.gate = threading.Semaphore(3)
    one = engine(model)
    generation = one.submit(ask(deadline=time.monotonic() + 0.3))
    shown: list[str] = []
    with pytest.raises(DeadlineError):
        shown.extend(event.text for event in generation)
    assert "".join(shown) == "xxxx"[: len(shown)]
    model.gate.release(1000)
    assert one.submit(ask(max_new_tokens=2)).result().text == "xx"


def test_closing_ends_every_request(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted()
    model.gate = threading.Semaphore(1)
    one = engine(model)
    running, waiting = one.submit(ask()), one.submit(ask())
    model.wait_for_steps(1)
    closing = threading.Thread(target=one.close)
    closing.start()
    for generation in (running, waiting):
        with pytest.raises(EngineError, match="closed"):
            generation.result()
    assert not model.closed  # the worker is still in a step
    model.gate.release(1000)
    closing.join(60)
    assert model.closed
    one.close()
    with pytest.raises(EngineError, match="closed"):
        one.submit(ask())


@pytest.mark.parametrize("error", [RuntimeError("boom"), EngineError("boom"), MemoryError("boom")])
def test_a_failing_model_fails_one_request(
    engine: Make, scripted: Make, ask: Make, error: Exception
) -> None:
    model = scripted()
    model.error = error
    one = engine(model)
    with pytest.raises(EngineError, match="boom") as caught:
        one.submit(ask()).result()
    assert error in (caught.value, caught.value.__cause__)
    assert one.submit(ask()).result().text == "It is red."


def test_logits_that_are_no_numbers_fail_the_request(
    engine: Make, scripted: Make, ask: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "_logits", lambda *_: np.full(260, np.nan, np.float16))
    with pytest.raises(EngineError, match="returned nan among its logits"):
        engine(scripted()).submit(ask()).result()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("  \n", "the prompt is empty"),
        ("What is <image>?", "contains the image token '<image>'"),
        ("x" * 59, "the prompt has 60 tokens; at most 59 fit"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_refused_at_once(
    engine: Make, scripted: Make, ask: Make, prompt: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine(scripted()).submit(ask(prompt))


@pytest.mark.parametrize(
    "visual_prompt",
    [
        np.zeros((1, 3, 8), np.float32),
        np.zeros((4, 8), np.float32),
        np.zeros((0, 4, 8), np.float32),
        np.zeros((1, 4, 8), np.int64),
    ],
)
def test_a_visual_prompt_of_another_shape_is_refused(
    engine: Make, scripted: Make, ask: Make, visual_prompt: Any
) -> None:
    with pytest.raises(InputError, match=r"expected float16 or float32 \[images, 4, 8\]"):
        engine(scripted()).submit(replace(ask(), visual_prompt=visual_prompt))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_a_visual_prompt_may_be_of_any_float(
    engine: Make, scripted: Make, ask: Make, dtype: Any
) -> None:
    request = replace(ask(), visual_prompt=np.zeros((1, 4, 8), dtype))
    assert engine(scripted()).submit(request).result().text == "It is red."


def test_min_new_tokens_that_do_not_fit_are_refused(
    engine: Make, scripted: Make, ask: Make
) -> None:
    with pytest.raises(OptionError, match="min_new_tokens is 30; at most 20 tokens"):
        engine(scripted()).submit(ask(min_new_tokens=30))


def test_the_visual_prompt_is_the_engines_own(engine: Make, scripted: Make, ask: Make) -> None:
    model = scripted()
    model.gate = threading.Semaphore(0)
    one = engine(model)
    seen: list[float] = []
    read = model.read
    model.read = lambda visual, ids: (seen.append(float(visual[0, 0, 0])), read(visual, ids))[1]
    first, request = one.submit(ask()), ask()
    second = one.submit(request)
    request.visual_prompt[:] = 9
    model.gate.release(1000)
    assert isinstance(first.result(), Answer)
    assert isinstance(second.result(), Answer)
    assert seen == [0.0, 0.0]
