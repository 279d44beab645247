"""The LLaMA demo on vLLM, served by Triton, answers as ONNX Runtime does; and what it survives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iblip.serving.client import CancelledError, Client, EngineError, GenerationOptions, OptionError
from tests.fixtures.serving import same

pytestmark = pytest.mark.vllm

AT_ONCE = 8
RECOVERY_S = 300
"""vLLM takes a minute to start on a busy machine. Only a test that fails waits so long."""

LONG = GenerationOptions(min_new_tokens=900, max_new_tokens=900, temperature=2.0, seed=1)


def _table() -> dict[int, tuple[int, str]]:
    """Every process that runs: its parent, and its command line."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z":
            found[int(directory.name)] = int(parent), command
    return found


def below(pid: int) -> dict[int, str]:
    """Command lines of all that this process started, and of what they did."""
    table = _table()
    found: dict[int, str] = {}
    parents = {pid}
    while parents:
        parents = {child for child, (parent, _) in table.items() if parent in parents}
        found |= {child: table[child][1] for child in parents}
    return found


def worker_below(pid: int) -> int:
    """The process that speaks with vLLM."""
    (worker,) = [child for child, command in below(pid).items() if "vllm/worker.py" in command]
    return worker


def wait_until_gone(pids: Iterable[int]) -> None:
    end = time.monotonic() + 60
    while left := set(pids) & _table().keys():
        assert time.monotonic() < end, f"still running: {left}"
        time.sleep(0.05)


def test_every_held_out_answer_is_onnx_runtime_s(client, reference, examples):
    def stream(example):
        with client.stream(example.image, example.prompt) as pieces:
            return "".join(pieces), pieces.answer

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(stream, examples))
    assert len(answers) == len(examples) == 500
    for example, (text, answer) in zip(examples, answers, strict=True):
        assert text == answer.text
        same(answer, reference.answer(example.image, example.prompt))


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=3),
        GenerationOptions(min_new_tokens=20, max_new_tokens=20),
        GenerationOptions(repetition_penalty=1.7, min_new_tokens=12, max_new_tokens=30),
        GenerationOptions(repetition_penalty=0.6, max_new_tokens=30),
        GenerationOptions(logit_bias={449: 7.5, 360: -30.0}, max_new_tokens=15),
        GenerationOptions(banned_words=("digit", "There", "the"), max_new_tokens=15),
        GenerationOptions(stop=("i",), max_new_tokens=30),
        GenerationOptions(stop_token_ids=(445, 272), max_new_tokens=30),
    ],
    ids=lambda options: "-".join(options.to_mapping()),
)
def test_options_mean_what_they_mean_on_onnx_runtime(client, reference, examples, options):
    images = [example.image for example in examples[:12]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = pool.map(lambda i: client.ask(i, "Describe the image.", options=options), images)
        answers = list(asked)
    for image, answer in zip(images, answers, strict=True):
        same(answer, reference.answer(image, "Describe the image.", options))


def test_logprobs_are_onnx_runtime_s(client, reference, picture):
    options = GenerationOptions(logprobs=4, repetition_penalty=1.3)
    answer = client.ask(picture, "Describe the image.", options=options)
    wanted = reference.answer(picture, "Describe the image.", options)
    assert [found.token_id for found in answer.logprobs] == [w.token_id for w in wanted.logprobs]
    for found, want in zip(answer.logprobs, wanted.logprobs, strict=True):
        assert found.logprob == pytest.approx(want.logprob, abs=1e-4)
        assert [token for token, _ in found.top] == [token for token, _ in want.top]


def test_draws_follow_their_seed(client, picture):
    def ask(seed, **options):
        asked = {"temperature": 2.0, "min_new_tokens": 20, "max_new_tokens": 20, **options}
        options = GenerationOptions(seed=seed, **asked)
        return client.ask(picture, "Describe the image.", options=options)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask, [1, 2, 3, 1, 2, 3]))
    texts = [answer.token_ids for answer in answers]
    assert texts[:3] == texts[3:]
    assert len(set(texts)) == 3
    several = ask(1, n=3)
    assert [one.token_ids for one in (several, *several.others)] == texts[:3]
    assert several.seed == 1


def test_a_draw_among_one_is_greedy(client, reference, picture):
    options = GenerationOptions(temperature=1.5, top_k=1, seed=3, max_new_tokens=20)
    answer = client.ask(picture, "Describe the image.", options=options)
    assert answer.text == reference.answer(picture, "Describe the image.").text


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"no_repeat_ngram_size": 2}])
def test_what_vllm_has_not_is_refused_by_name(client, picture, options):
    (name,) = options
    with pytest.raises(OptionError, match=f"runs on vLLM, which has no {name}"):
        client.ask(picture, "What?", options=GenerationOptions(**options))


def test_cancelled_answers_free_vllm(client, picture):
    # One after another these take many times the deadline below; cancelled, next to nothing.
    streams = [client.stream(picture, f"Describe part {n}.", options=LONG) for n in range(100)]
    first = next(streams[0])
    for stream in streams:
        stream.cancel()
    with pytest.raises(CancelledError, match="the answer was cancelled"):
        list(streams[0])
    assert streams[0].text.startswith(first)
    assert client.ask(picture, "What digit is it?", timeout=60).finish_reason != "cancelled"


@pytest.mark.parametrize("victim", ["worker", "vllm's own"])
def test_a_killed_process_is_told_and_the_next_answers_right(
    server, client, reference, examples, victim
):
    worker = worker_below(server.pid)
    others = below(worker)
    (core,) = [pid for pid, command in others.items() if command.startswith("VLLM::EngineCore")]
    stream = client.stream(examples[0].image, "Describe the image.", options=LONG)
    first = next(stream)
    os.kill(worker if victim == "worker" else core, signal.SIGKILL)
    with pytest.raises(EngineError, match="the vLLM process ended while it generated this answer"):
        list(stream)
    assert stream.text.startswith(first)
    with ThreadPoolExecutor(AT_ONCE) as pool:  # these wait for it to be back
        asked = pool.map(lambda e: client.ask(e.image, e.prompt, timeout=RECOVERY_S), examples[:16])
        answers = list(asked)
    for example, answer in zip(examples, answers, strict=False):
        same(answer, reference.answer(example.image, example.prompt))
    wait_until_gone([worker, *others])
    assert worker_below(server.pid) != worker


def test_a_server_leaves_no_vllm_behind(serve):
    with serve as server:
        worker = worker_below(server.pid)
        everything = [worker, *below(worker)]
        assert len(everything) > 2
    wait_until_gone(everything)


def test_a_killed_server_takes_vllm_with_it(serve, picture):
    with serve as server, Client(server.grpc_url) as client:
        worker = worker_below(server.pid)
        everything = [worker, *below(worker)]
        stream = client.stream(picture, "Describe the image.", options=LONG)
        next(stream)
        os.killpg(server.pid, signal.SIGKILL)  # Triton and its Python models; nobody says goodbye
        wait_until_gone(everything)
