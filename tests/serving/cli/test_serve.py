"""`iblip serve MODEL`, which builds first. That builds are served, `tests/e2e` shows."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.demo import demo_checkpoint
from iblip.serving.cli import iblip


def serve(*words):
    arguments = ["serve", *map(str, words), "--print-command"]
    return CliRunner().invoke(iblip, arguments, prog_name="iblip")


def test_a_checkpoint_is_built_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ignore = shutil.ignore_patterns("examples")
    model = shutil.copytree(demo_checkpoint(), tmp_path / "model", ignore=ignore)
    first = serve(model)
    assert first.exit_code == 0, first.stderr
    build = tmp_path / "build" / "model-fp32"
    assert Manifest.read(build).name == "model"
    assert str(build / "model_repository") in first.stdout
    second = serve(model)
    assert str(build / "model_repository") in second.stdout
    assert "is this build already" in second.stderr
    refused = serve(build, "--precision", "fp16")
    assert refused.exit_code == 2
    assert "--precision is for a model that is built first" in refused.stderr


@pytest.mark.parametrize("words", [["nowhere"], ["lavis:blip2_opt/pretrain_opt2.7b"]])
def test_what_is_neither_is_a_wrong_call(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = serve(*words)
    assert done.exit_code == 2
    assert f"there is no build and no model {words[0]}" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--triton", "nowhere"],
        ["--vllm-python", "nowhere"],
        ["--tls-cert", "nowhere"],
        ["--token-file", "nowhere"],
        ["--max-http-body", "-1"],
        ["--http-port", "0"],
        ["--vision-cache-size", "17592186044416"],
        ["--vision-cache-size", "1e30"],
        ["--cache-size", "17592186044416"],
    ],
)
def test_a_call_that_is_refused_leaves_nothing(words, vicuna_build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = serve(vicuna_build, "--vision-cache", "new/cache", *words)
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--http-port", "70000"], ["--host", "0.0.0.0"]])
def test_a_call_that_is_refused_builds_nothing(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = serve(demo_checkpoint(), *words)
    assert done.exit_code in (1, 2)
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert list(tmp_path.iterdir()) == []
