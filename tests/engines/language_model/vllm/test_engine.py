"""The vLLM engine as a caller sees it, over a real process that only speaks as vLLM's does."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iblip.engines.language_model.types import GenerationRequest, TextDelta
from iblip.engines.language_model.vllm.restarts import Restarts
from iblip.export.errors import DeadlineError, EngineError, InputError, OptionError, QueueFullError

Make = Callable[..., Any]


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hang(engine: Any, ask: Make) -> Any:
    """A request that runs until somebody ends it."""
    generation = engine.submit(ask("hang"))
    assert next(iter(generation)).text == "h"
    return generation


def aborts(engine: Any, ask: Make) -> int:
    return int(engine.submit(ask("aborts")).result().text)


def test_an_answer_is_deltas_and_then_itself(engine: Make, ask: Make) -> None:
    *deltas, answer = engine().submit(ask("say größe 🦉!"))
    assert [delta.text for delta in deltas] == list("größe 🦉!")
    assert answer.text == "größe 🦉!"
    assert answer.token_ids == tuple("größe 🦉!".encode())
    assert (answer.finish_reason, answer.seed, answer.logprobs) == ("eos", None, None)
    assert answer.completion_tokens == len(answer.token_ids) + 1
    assert answer.prompt_tokens == 4 + 1 + len("say größe 🦉!".encode())
    assert min(answer.timing.queue_s, answer.timing.prefill_s, answer.timing.decode_s) >= 0


def test_decoding_is_timed_from_the_first_token(engine: Make, ask: Make) -> None:
    answer = engine().submit(ask("drip")).result()
    assert answer.text == "dd"
    timing = answer.timing
    assert timing.decode_s > 0  # what lies between its tokens; a busy reader sees the first late
    assert timing.prefill_s + timing.decode_s >= 0.1


def test_what_vllm_is_asked_for(engine: Make, ask: Make) -> None:
    options = {
        "max_new_tokens": 800,
        "min_new_tokens": 3,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -2.0},
        "banned_words": ["ab"],
        "stop_token_ids": [9],
        "seed": 11,
        "stop": ["zzz"],
    }
    answer = engine().submit(ask("options", **options)).result()
    assert json.loads(answer.text) == {
        "bytes": 4 * 8 * 4,
        "visual": [1, 4, 8],
        "max_tokens": 800,
        "min_tokens": 3,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 11,
        "repetition_penalty": 1.5,
        "stop_token_ids": [256, 9],
        "ignore_eos": True,
        "logit_bias": {"7": -2.0},
        "banned_token_ids": [[97, 98], [32, 97, 98]],
    }
    assert answer.seed == 11


def test_a_stop_string_ends_the_answer_and_frees_vllm(engine: Make, ask: Make) -> None:
    opened = engine()
    *deltas, answer = opened.submit(ask("say It is red. ###Human: what", stop=[". ##"]))
    assert answer.text == "".join(delta.text for delta in deltas) == "It is red"
    assert answer.finish_reason == "stop"
    assert answer.token_ids == tuple(b"It is red. ##")
    assert aborts(opened, ask) == 1


def test_a_length_and_a_stop_token_are_told_apart(engine: Make, ask: Make) -> None:
    opened = engine()
    answer = opened.submit(ask("say abcdef", max_new_tokens=3)).result()
    assert (answer.text, answer.finish_reason) == ("abc", "length")
    answer = opened.submit(ask("say abcdef", stop_token_ids=[ord("d")])).result()
    assert (answer.text, answer.finish_reason) == ("abc", "stop")


def test_logprobs_are_the_chosen_and_the_likeliest(engine: Make, ask: Make) -> None:
    answer = engine().submit(ask("say x", logprobs=2)).result()
    assert [found.token_id for found in answer.logprobs] == [ord("x"), 256]
    assert [found.logprob for found in answer.logprobs] == [-3.0, -3.0]
    assert answer.logprobs[0].top == ((1, -0.5), (2, -1.0))


def test_several_answers_have_seeds_of_their_own(engine: Make, ask: Make) -> None:
    answer = engine().submit(ask("options", n=3, temperature=1.0, seed=2**63 - 1)).result()
    seeds = [json.loads(one.text)["seed"] for one in (answer, *answer.others)]
    assert seeds == [2**63 - 1, 0, 1]
    assert answer.seed == 2**63 - 1


def test_the_streamed_text_is_the_first_answer_s(engine: Make, ask: Make) -> None:
    events = list(engine().submit(ask("say so", n=2, temperature=1.0)))
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(texts) == "so"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams is 2; this model runs on vLLM, which has no num_beams"),
        ({"no_repeat_ngram_size": 3}, "--llm-engine onnxruntime, which has it"),
        ({"candidates": ["a", "b"]}, "this model runs on vLLM, which has no candidates"),
        ({"temperature": 0.001}, r"takes 0 \(greedy\) and 0.01 to 2.0"),
        ({"temperature": 2.5}, r"takes 0 \(greedy\) and 0.01 to 2.0"),
        ({"logit_bias": {"260": 1.0}}, "this model's tokens are 0 to 259"),
        ({"n": 5, "temperature": 1.0}, "runs 4 sequences at once"),
        ({"min_new_tokens": 901}, "at most 900 tokens"),
    ],
)
def test_what_vllm_cannot_do_is_refused(
    engine: Make, ask: Make, options: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        engine().submit(ask("say", **options))


def test_what_cannot_be_read_is_refused(engine: Make, ask: Make) -> None:
    opened = engine(positions=40)
    with pytest.raises(InputError, match="this model holds 40"):
        opened.submit(ask("say " + "x" * 60))
    with pytest.raises(InputError, match="the prompt is empty"):
        opened.submit(ask(" "))
    wrong = np.zeros((1, 3, 8), np.float32)
    with pytest.raises(InputError, match=r"expected float16 or float32 \[images, 4, 8\]"):
        opened.submit(GenerationRequest(prompt="say", visual_prompt=wrong))


def test_a_full_queue_refuses_and_others_wait_their_turn(engine: Make, ask: Make) -> None:
    opened = engine(sequences=1, queue_limit=2)
    running = hang(opened, ask)
    waiting = [opened.submit(ask(f"say {number}")) for number in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        opened.submit(ask("say more"))
    running.cancel()
    assert running.result().finish_reason == "cancelled"
    assert [one.result().text for one in waiting] == ["0", "1"]


def test_interactive_requests_are_sent_to_vllm_first(engine: Make, ask: Make) -> None:
    opened = engine(sequences=1, queue_limit=9)
    running = hang(opened, ask)
    bulk = opened.submit(ask("hang", priority="bulk"))
    interactive = opened.submit(ask("say a"))
    running.cancel()
    assert interactive.result().text == "a"
    assert next(iter(bulk)).text == "h"
    bulk.cancel()


def test_the_status_is_what_runs_and_what_has_been(engine: Make, ask: Make) -> None:
    opened = engine(sequences=3, queue_limit=1)
    assert opened.submit(ask("say ab")).result().text == "ab"
    running = [hang(opened, ask) for _ in range(3)]
    waiting = opened.submit(ask("say c"))
    with pytest.raises(QueueFullError):
        opened.submit(ask("say d"))
    status = opened.status()
    assert (status.slots, status.slots_used, status.running, status.waiting) == (3, 3, 3, 1)
    assert status.generated_tokens == 3 + 3
    assert status.prompt_tokens == 4 * 4 + (1 + len("say ab")) + 3 * (1 + len("hang"))
    for one in running:
        one.cancel()
    assert waiting.result().text == "c"
    status = opened.status()
    assert (status.slots_used, status.running, status.waiting) == (0, 0, 0)
    assert status.requests["eos"] == 2
    assert status.requests["cancelled"] == 3
    assert status.requests["refused"] == 1
    seen = status.distributions
    assert (seen.queue_s.count, seen.first_token_s.count, seen.request_s.count) == (5, 5, 2)
    assert (seen.answer_tokens.count, seen.answer_tokens.total) == (2, 3 + 2)
    assert seen.rows.count == 0  # vLLM does not say


def test_a_cancelled_request_keeps_its_text_and_frees_vllm(engine: Make, ask: Make) -> None:
    opened = engine()
    running = hang(opened, ask)
    running.cancel()
    answer = running.result()
    assert (answer.text, answer.finish_reason) == ("h", "cancelled")
    assert aborts(opened, ask) == 1


def test_an_answer_that_nobody_reads_is_aborted(engine: Make, ask: Make) -> None:
    opened = engine()
    running = hang(opened, ask)
    del running
    gc.collect()
    wait_until(lambda: aborts(opened, ask) == 1, "the request is still running")


def test_a_deadline_ends_what_runs_and_what_waits(engine: Make, ask: Make) -> None:
    opened = engine(sequences=1)
    soon = time.monotonic() + 1  # by then the first has been sent
    running = opened.submit(ask("hang", deadline=soon))
    waiting = opened.submit(ask("say x", deadline=soon))
    for late in (running, waiting):
        with pytest.raises(DeadlineError, match="not finished by its deadline"):
            late.result()
    wait_until(lambda: aborts(opened, ask) == 1, "the request is still running")


def test_a_request_that_vllm_fails_fails_alone(engine: Make, ask: Make) -> None:
    opened = engine()
    with pytest.raises(EngineError, match="vLLM failed: no memory left"):
        opened.submit(ask("fail")).result()
    assert opened.submit(ask("say on")).result().text == "on"


def test_a_death_is_told_and_survived(engine: Make, ask: Make, tmp_path: Path) -> None:
    births = tmp_path / "births"
    opened = engine(sequences=2, birth=str(births))
    bystander = hang(opened, ask)
    dying = opened.submit(ask("die"))
    waiting = opened.submit(ask("say later"))
    for lost in (dying, bystander):
        with pytest.raises(
            EngineError, match="the vLLM process ended while it generated this answer"
        ):
            lost.result()
    assert waiting.result().text == "later"  # it had not been sent yet
    assert opened.submit(ask("say again")).result().text == "again"
    assert len(births.read_text().split()) == 2


def test_a_kill_from_outside_is_told_with_its_signal(
    engine: Make, ask: Make, tmp_path: Path
) -> None:
    births = tmp_path / "births"
    opened = engine(birth=str(births))
    running = hang(opened, ask)
    os.kill(int(births.read_text()), signal.SIGKILL)
    with pytest.raises(EngineError, match=r"being restarted \(signal 9\)"):
        running.result()
    assert opened.submit(ask("say again")).result().text == "again"


def test_a_process_that_keeps_dying_is_given_up(engine: Make, ask: Make, tmp_path: Path) -> None:
    births = tmp_path / "births"
    opened = engine(restarts=Restarts(limit=2, first_s=0.01), birth=str(births))
    for _ in range(3):
        with pytest.raises(EngineError):
            opened.submit(ask("die")).result()
    with pytest.raises(EngineError, match=r"ended 3 times in a row, and is not restarted"):
        opened.submit(ask("say x")).result()
    assert len(births.read_text().split()) == 3


def test_why_vllm_did_not_start_is_told(engine: Make) -> None:
    with pytest.raises(EngineError) as caught:
        engine(fault="there is no GPU")
    text = str(caught.value)
    assert text.startswith("vLLM did not start: there is no GPU; exit status 7")
    assert "the log's last line" in text


def test_closing_ends_requests_and_every_process(engine: Make, ask: Make, tmp_path: Path) -> None:
    births = tmp_path / "births"
    opened = engine(sequences=1, birth=str(births), child=True)
    running, waiting = hang(opened, ask), opened.submit(ask("say x"))
    pid = int(births.read_text())
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    opened.close()
    for ended in (running, waiting):
        with pytest.raises(EngineError, match="the language-model engine is closed"):
            ended.result()
    with pytest.raises(EngineError, match="the language-model engine is closed"):
        opened.submit(ask("say x"))
    for one in (pid, *map(int, children)):
        wait_until(lambda one=one: not is_running(one), f"{one} is still running")
    opened.close()  # once more is harmless


def test_what_a_dead_process_started_dies_with_it(engine: Make, ask: Make, tmp_path: Path) -> None:
    births = tmp_path / "births"
    opened = engine(birth=str(births), child=True)
    pid = int(births.read_text())
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    with pytest.raises(EngineError):
        opened.submit(ask("die")).result()
    wait_until(lambda: not is_running(int(child)), f"{child} is still running")


def test_many_at_once_are_each_its_own(engine: Make, ask: Make) -> None:
    opened = engine(sequences=5)
    found: dict[int, str] = {}

    def one(number: int) -> None:
        found[number] = opened.submit(ask(f"say {'x' * number}")).result().text

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: "x" * number for number in range(1, 21)}
