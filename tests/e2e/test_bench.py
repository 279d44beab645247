"""`iblip bench` and `iblip tune` against the real Triton: what they print, and that it adds up."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip
from iblip.serving.cli.documents import DOCUMENTS
from tests.ports import closed_port


def run(*words):
    return CliRunner().invoke(iblip, list(map(str, words)))


def measured(served, *words):
    done = run("bench", served.url, *words, "--json")
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {"format", *DOCUMENTS["bench"]}
    assert figures["requests"] == sum(
        figures[fate] for fate in ("answered", "refused", "timed_out", "failed")
    )
    return figures


def test_a_closed_loop(served):
    figures = measured(served, "-n", 6, "-c", 3, "--max-new-tokens", 5)
    assert (figures["requests"], figures["concurrency"], figures["rate"]) == (6, 3, None)
    assert figures["answered"] == 6
    assert figures["tokens_a_second"] == pytest.approx(
        5 * 6 / figures["seconds"], rel=0.05, abs=0.1
    )
    assert 0 < figures["first_text_s"]["p50"] <= figures["whole_answer_s"]["p99"]
    assert figures["sent_s"]["p50"] < figures["first_text_s"]["p50"]
    assert figures["search"] is None


def test_an_open_loop_of_mixed_lengths(served):
    load = ("--rate", 8, "--seconds", 2, "--max-new-tokens", "2-9", "--prompt-words", "1-5")
    figures = measured(served, *load, "--slo", "ttft=60s,e2e=60s")
    assert (figures["concurrency"], figures["rate"]) == (None, 8)
    assert figures["slo"] == {"ttft_s": 60, "itl_s": None, "e2e_s": 60, "share": 0.99}
    assert figures["within_slo"] == 1
    assert figures["goodput"] == figures["requests_a_second"]
    text = run("bench", "--url", served.url, *load).stdout
    assert "first text" in text
    assert "a second" in text


def test_requests_of_a_file(served, picture, tmp_path):
    rows = [{"image": str(picture), "prompt": "What is it?", "options": {"max_new_tokens": 1}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    figures = measured(served, "--input", path, "-n", 4)
    assert figures["answered"] == 4
    assert figures["tokens_a_second"] == pytest.approx(4 / figures["seconds"], rel=0.05, abs=0.1)
    assert figures["token_s"]["p50"] is None


def test_a_search_finds_the_highest_rate_that_meets_the_objective(served):
    load = ("--search", "--seconds", 0.5, "-c", 2, "--max-new-tokens", 2)
    figures = measured(served, *load, "--slo", "ttft=20s", "--slo-share", 0.5)
    found = figures["search"]
    assert found["rate"] == figures["rate"]
    assert figures["within_slo"] >= 0.5
    assert {"rate": found["rate"], "meets": True}.items() <= found["tried"][-1].items()


def test_a_search_says_that_no_rate_meets_the_objective(served):
    load = ("--search", "--seconds", 1, "-c", 2, "--max-new-tokens", 2, "--slo", "e2e=1us")
    done = run("bench", served.url, *load)
    assert done.exit_code == 0, done.stderr
    assert "no rate meets the SLO, down to 10 a second" in done.stdout


def test_a_run_without_any_answer_is_a_failure(served):
    done = run("bench", served.url, "-n", 2, "--warm-up", 0, "--timeout", 0.0001)
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "none of 2 requests was answered (2 timed out, 0 refused, 0 failed)" in line


def test_a_request_that_the_server_does_not_take_is_a_wrong_call(served):
    done = run("bench", served.url, "--max-new-tokens", 10**6)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_server_that_is_not_there_is_told():
    with closed_port() as port:
        done = run("bench", f"127.0.0.1:{port}")
    assert done.exit_code == 1
    assert str(port) in done.stderr


def test_inputs_are_written(served, tmp_path):
    done = run("bench", served.url, "--write-inputs", tmp_path / "in", "-n", 3, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"format", *DOCUMENTS["bench --write-inputs"]}
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(document["files"])


def test_a_build_is_tuned_within_its_time(served):
    words = ("--seconds", 0.5, "--minutes", 0.5, "-c", 2, "--max-new-tokens", 2)
    done = run("tune", served.build, *words, "--slo", "ttft=60s", "--json")
    assert done.exit_code == 0, done.stderr
    tuning = json.loads(done.stdout)
    assert set(tuning) == {"format", *DOCUMENTS["tune"]}
    own, *others = tuning["settings"]
    limits = served.manifest.limits
    assert (own["slots"], own["max_batch"]) == (limits.slots, limits.max_batch)
    assert own["memory"] > 1 << 20
    assert own["turns"][0]["within_slo"] == 1
    assert len(others) + len(tuning["left_out"]) == 6
    assert tuning["recommended"] in [
        {name: one[name] for name in tuning["recommended"]} for one in tuning["settings"]
    ]
