"""`iblip models`: what a user sees."""

from __future__ import annotations

import json

from click.testing import CliRunner

from iblip.export.models.table import MODELS
from iblip.serving.cli import iblip


def test_every_model_is_in_the_table_and_no_line_is_wide():
    done = CliRunner().invoke(iblip, ["models"])
    assert done.exit_code == 0, done.output
    for model in MODELS.values():
        line = next(line for line in done.stdout.splitlines() if f" {model.name} " in line)
        assert line.endswith(model.original)
    assert "instructblip-vicuna-7b        7.9 B     224" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_what_has_not_been_built_is_not_said_to_be():
    done = CliRunner().invoke(iblip, ["models"])
    groups = len({m.demo for m in MODELS.values()})
    assert done.stdout.count("with random weights: none yet") == groups - 2
    assert done.stdout.count("weights: instructblip-vicuna-7b, instructblip-vicuna-13b\n") == 1


def test_json_has_everything():
    done = CliRunner().invoke(iblip, ["models", "--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)["models"]}
    assert list(rows) == list(MODELS)
    row = rows["blip2-opt-2.7b-coco"]
    assert row["lavis"] == "blip2_opt/caption_coco_opt2.7b"
    assert row["vision"]["image_size"] == 364
    assert row["parameters"]["language_model"] == 2_651_596_800
    assert row["demo"] == "blip2-demo-opt"
    assert row["built_at_size"] is False
    assert row["llm_engines"] == ["onnxruntime", "openvino", "vllm"]
