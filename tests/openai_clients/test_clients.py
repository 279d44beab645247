"""What other people's clients and tools make of the gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.aiperf import TOKENS, profile
from tests.openai_clients.conftest import MODEL

HERE = Path(__file__).parent
QUESTION = "Describe the image."
LIMIT_S = 300
SEED = 7

EXCLUDED = "positive_data_acceptance"
"""A schema says of each parameter what it takes, not which of them exclude one another."""


@pytest.fixture(scope="module")
def told(commands, running, examples):
    """What each client was answered."""
    words = [commands / "python", HERE / "ask.py", running.url, MODEL]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # its prices are not looked up
    done = subprocess.run(
        [*words, examples[0].image, QUESTION],
        env={**os.environ, **offline},
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["litellm", "langchain"])
def test_libraries_are_answered_as_the_client_is(told, name, client, picture):
    expected = client.ask(picture, QUESTION, max_new_tokens=20)
    answer = told[name]
    assert answer["text"] == answer["streamed"] == expected.text
    assert answer["prompt_tokens"] == expected.prompt_tokens
    assert answer["completion_tokens"] == expected.completion_tokens
    assert answer["parsed"].keys() == {"digit", "is_red"}
    assert answer["beams"] == client.ask(picture, QUESTION, num_beams=3, max_new_tokens=20).text


def test_aiperf_writes_its_report(running, checkpoints, tmp_path):
    report = profile(
        running.url.removesuffix("/v1"), checkpoints / MODEL, tmp_path / "aiperf", requests=40
    )
    assert report["is_complete"]
    assert report["error_summary"] == []
    assert report["request_count"]["avg"] == 40
    assert report["usage_completion_tokens"]["min"] == TOKENS
    assert report["time_to_first_token"]["avg"] > 0
    assert str(tmp_path) not in json.dumps(report)


def test_no_request_that_schemathesis_thinks_of_fails(commands, running, tmp_path):
    """Bodies as the published document has them, and wrong ones: no 500, responses conform."""
    done = subprocess.run(
        [
            commands / "schemathesis",
            "run",
            f"{running.url.removesuffix('/v1')}/openapi.json",
            f"--seed={SEED}",
            "--max-examples=300",
            "--generation-database=none",
            f"--exclude-checks={EXCLUDED}",
            "--continue-on-failure",
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "asked_about_an_image.py")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout
    _, _, metrics = running.send("GET", "/metrics")
    answered = re.search(rb'responses_total\{status="200"\} (\d+)', metrics)
    assert answered is not None
    assert int(answered[1]) > 20  # it got as far as answers
