"""Calls of `iblip run` that cannot be served, and files that cannot be written, by any command."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip


def call(*words, **variables):
    return CliRunner().invoke(iblip, list(map(str, words)), prog_name="iblip", env=variables)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.mark.parametrize("option", ["--url", "--and-url"])
def test_a_build_and_a_server_are_not_both_asked(folder, tmp_path, option):
    words = ["run", folder, "--output", tmp_path / "out.jsonl", "--build", folder]
    result = call(*words, option, "127.0.0.1:1")
    assert result.exit_code == 2
    assert f"--build and {option} are given" in result.stderr
    result = call(*words, IBLIP_RUN_URL="127.0.0.1:1")
    assert "are given" not in result.stderr


@pytest.mark.parametrize("name", ["nowhere/out.jsonl", "images"])
def test_an_output_that_cannot_be_written_is_named(vicuna_build, folder, tmp_path, name):
    output = tmp_path / name
    words = ["run", folder, "--prompt", "What?", "--build", vicuna_build, "--output", output]
    result = call(*words, "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "FileError"
    assert error["message"].startswith(f"{output}: ")


def test_what_caches_had_is_said(demo_build, examples, folder, tmp_path):
    shutil.copyfile(examples[0].image, folder / "image.webp")
    words = ["-q", "run", folder, "--build", demo_build("minigpt4-demo"), "--max-new-tokens", 2]
    words += ["--prompt", "What is it?", "--vision-cache", tmp_path / "cache", "--output"]
    first = call(*words, tmp_path / "first.jsonl")
    assert first.stdout == f"{tmp_path / 'first.jsonl'}: 1 answered, 0 failed\n"
    both = call(*words, tmp_path / "both.jsonl", "--prompt", "Where is it?")
    assert re.search(
        r": 2 answered, 0 failed; 2 images from the vision cache, \d+ prompt positions from the "
        r"prefix cache\n$",
        both.stdout,
    )
    again = call(*words, tmp_path / "again.jsonl", "--json")
    result = json.loads(again.stdout)
    assert (result["vision_cache_hits"], result["cached_prompt_tokens"]) == (1, 0)
