"""`iblip synthesize`, and what the other commands say of its checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.export.models.table import MODELS
from iblip.serving.cli import export

NAME = "instructblip-vicuna-7b"


def call(*arguments):
    return CliRunner().invoke(export, [str(word) for word in arguments], prog_name="export")


@pytest.fixture
def narrow(monkeypatch):
    """The row `NAME` of the table, with few and narrow layers."""
    model, part = MODELS[NAME], {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    small = replace(
        model,
        vision={**model.vision, **part, "num_attention_heads": 4},
        qformer={**model.qformer, **part, "num_attention_heads": 4, "encoder_hidden_size": 32},
        text={**model.text, **part, "num_attention_heads": 4, "num_key_value_heads": 4},
    )
    monkeypatch.setitem(MODELS, NAME, small)


def test_a_synthetic_checkpoint_is_built_verified_and_called_so(narrow, tmp_path):
    checkpoint, built = tmp_path / "checkpoint", tmp_path / "built"
    made = call("synthesize", NAME, checkpoint, "--dtype", "float16", "--seed", 4, "--json")
    assert made.exit_code == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["model"] == NAME
    assert facts["seed"] == 4
    assert facts["bytes"] == 2 * sum(MODELS[NAME].parameters.values())
    result = call("build", "--model", checkpoint, "--output", built, "--max-length", 64)
    assert result.exit_code == 0, result.stderr
    assert MEANS_NOTHING in result.stderr
    assert MEANS_NOTHING in call("inspect", built).stdout
    assert json.loads(call("inspect", built, "--json").stdout)["source"]["synthetic"] is True
    report = call("verify", built)
    assert report.exit_code == 0
    assert MEANS_NOTHING in report.stdout


def test_an_unknown_model_is_answered_with_those_that_there_are(tmp_path):
    result = call("synthesize", "vicuna", tmp_path / "out")
    assert result.exit_code == 2
    assert "there is no model vicuna. Expected one of\n  instructblip-vic" in result.stderr


def test_a_dtype_that_no_weights_have_is_refused(tmp_path):
    result = call("synthesize", NAME, tmp_path / "out", "--dtype", "int8")
    assert result.exit_code == 2
    assert "--dtype is 'int8'; expected one of float32, float16, bfloat16" in result.stderr
    assert not list(tmp_path.iterdir())
