"""The parity report of whole builds, and that it finds what is wrong with one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import escape
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO, checkpoint_from_directory
from iblip.export.examples import read_examples
from iblip.export.progress import Silent
from iblip.export.verification.choosing import choose_reference
from iblip.serving.cli import export
from iblip.serving.parity.html import page_from_report
from iblip.serving.parity.stages import STAGES
from iblip.serving.parity.subjects import Original, Subject


def call(*arguments):
    return CliRunner().invoke(export, ["verify", *map(str, arguments)], prog_name="export")


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def page(vicuna_build, tmp_path_factory):
    page = tmp_path_factory.mktemp("report") / "parity.html"
    result = call(vicuna_build, "--limit", 6, "--json", "--html", page)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(page.with_suffix(".json").read_text())
    return page


@pytest.fixture(scope="module")
def report(page):
    return json.loads(page.with_suffix(".json").read_text())


def test_every_stage_passes_and_says_what_it_measured(report):
    (build,) = report["builds"]
    assert report["passed"]
    assert build["passed"]
    assert build["label"] == "fp32"
    assert build["first_out"] is None
    assert list(build["stages"]) == list(STAGES)
    for stage in build["stages"].values():
        assert stage["passed"]
        assert any(check["limit"] is not None for check in stage["checks"])


def test_every_block_is_compared_by_name(report):
    stages = report["builds"][0]["stages"]
    paths = {
        stage: [error["path"] for error in stages[stage]["blocks"][f"{stage}/{graph}"]]
        for stage, graph in (
            ("vision_encoder", "model"),
            ("qformer", "model"),
            ("language_model", "batched_decoder"),
        )
    }
    assert paths == {
        "vision_encoder": [*(f"vision_model.encoder.layers.{i}" for i in range(5)), "image_embeds"],
        "qformer": [*(f"qformer.encoder.layer.{i}" for i in range(4)), "visual_prompt"],
        "language_model": [*(f"language_model.model.layers.{i}" for i in range(4)), "logits"],
    }


def test_answers_and_graphs_are_compared(report):
    stages = report["builds"][0]["stages"]
    for way in ("text", "beams"):
        assert stages[way]["same_text"] == stages[way]["examples"] == 6
    assert stages["accuracy"]["examples"] == 6
    low, high = stages["accuracy"]["interval"]
    assert 0 < low < stages["accuracy"]["right"] <= high <= 1
    assert set(stages["graphs"]["graphs"]) == {
        "vision_encoder/model",
        "qformer/model",
        "language_model/embed_tokens",
        "language_model/decoder",
        "language_model/batched_decoder",
    }


def test_the_page_needs_nothing_but_itself(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    images = re.findall(r'<img src="(.{15})', text)
    assert images == ["data:image/jpeg"] * 6
    for stage in STAGES.values():
        assert escape(stage.title) in text
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all(ElementTree.fromstring(plot).tag == "svg" for plot in plots)
    assert len(plots) == 4  # three stacks of blocks, and right answers
    for plot in plots[:3]:
        assert plot.count("<polyline") == 3  # the stream, each block alone, and the band
    assert plots[0].count("<circle") == 6  # five blocks and what comes out of them


def test_the_verdict_comes_first_and_in_the_terminal_last(page, report, vicuna_build):
    verdict = "PASS: the build is within every limit; answers equal to transformers': "
    assert report["verdict"] == verdict + "6 of 6 (fp32)"
    text = page.read_text(encoding="utf-8")
    assert text.index(escape(report["verdict"])) < text.index("<table")
    printed = call(
        vicuna_build, "--limit", 2, "--stage", "text", "--html", page.with_name("a.html")
    )
    assert printed.stdout.strip().splitlines()[-1] == verdict + "2 of 2 (fp32)"


def test_a_time_that_was_not_measured_has_no_row(report):
    row = "Time of a greedy answer"
    assert row in page_from_report(report)
    builds = [build | {"answer_s": None} for build in report["builds"]]
    assert row not in page_from_report(report | {"builds": builds})


def test_it_has_sizes_times_and_samples_with_all_answers(report, vicuna_build):
    (build,) = report["builds"]
    weights = (vicuna_build / "graphs").rglob("*")
    assert build["bytes"] >= sum({p.stat().st_ino: p.stat().st_size for p in weights}.values())
    assert 0 < build["answer_s"] < build["stages"]["text"]["seconds"]
    examples = read_examples(DEMO / "examples", 6)
    assert [sample["example"] for sample in report["samples"]] == [one.name for one in examples]
    for sample in report["samples"]:
        assert sample["texts"] == [sample["reference"]]


def test_builds_are_shown_side_by_side(vicuna_build, damaged, tmp_path):
    build = damaged(vicuna_build, "vision_model.encoder.layers.0.mlp.fc2.weight")
    where = ("--html", tmp_path / "both.html")
    result = call(vicuna_build, build, "--limit", 2, "--stage", "vision_encoder", *where, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [found["passed"] for found in report["builds"]] == [True, False]
    labels = [found["label"] for found in report["builds"]]
    assert labels == [f"fp32 ({vicuna_build.name})", "fp32 (damaged)"]
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert text.count("<polyline") == 6
    named = "the error leaves its band in <code>vision_model.encoder.layers.0</code>"
    assert f"fp32 (damaged): {named}" in text
    assert text.count(named) == 1


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        ("onnxruntime-cuda", "nothing ran on onnxruntime-cuda, which the build is for"),
        ("openvino", "openvino, which the build is for, ran for its answers alone"),
    ],
)
def test_what_did_not_run_on_the_engine_of_the_build_is_said(vicuna_build, tmp_path, engine, what):
    build = tmp_path / "other"
    shutil.copytree(vicuna_build, build)
    manifest = (build / "manifest.json").read_text()
    (build / "manifest.json").write_text(
        manifest.replace('"kind": "onnxruntime"', f'"kind": "{engine}"')
    )
    result = call(build, "--stage", "preprocessing", "--limit", 1)
    assert result.exit_code == 0, result.output
    note = (
        f"The graphs ran on ONNX Runtime's CPU provider: {what}. "
        f"`iblip prove {build}` compares it there."
    )
    assert note in result.stdout
    assert note in result.stderr
    report = json.loads((build / "verification" / "report.json").read_text())["builds"][0]
    assert report["elsewhere"] == note
    assert report["compared_on"] == "onnxruntime"
    assert escape(note) in (build / "verification" / "report.html").read_text()


def test_a_streamed_reference_skips_no_more_than_it_says(vicuna_build, tmp_path):
    where = ("--html", tmp_path / "streamed.html")
    result = call(vicuna_build, "--limit", 2, "--reference", "streamed", *where, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["reference"]["kind"] == "streamed"
    assert "answers of at most 8 tokens" in report["reference"]["reason"]
    stages = report["builds"][0]["stages"]
    assert stages.pop("accuracy")["skipped"] == "answers are limited to 8 tokens"
    assert all(stage["passed"] for stage in stages.values())


def test_without_examples_images_are_made_up(vicuna_build, checkpoints, tmp_path):
    model = tmp_path / "model"
    bare = shutil.ignore_patterns("examples")
    shutil.copytree(checkpoints / "instructblip-demo-vicuna", model, ignore=bare)
    options = ("--model", model, "--html", tmp_path / "bare.html", "--limit", 3)
    result = call(vicuna_build, *options, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["examples"] == 0
    stages = report["builds"][0]["stages"]
    assert [row["name"] for row in stages["first_token"]["examples"]] == [
        "noise-0",
        "noise-1",
        "noise-2",
    ]
    for name in ("text", "beams", "accuracy"):
        assert "the checkpoint has no examples" in stages.pop(name)["skipped"]
    assert all(stage["passed"] for stage in stages.values())


def test_of_a_synthetic_checkpoint_no_answer_is_counted(vicuna_build):
    checkpoint = replace(checkpoint_from_directory(DEMO), synthetic=True)
    choice = choose_reference(checkpoint, "whole")
    original = Original(checkpoint, read_examples(DEMO / "examples", 1), Silent(), choice)
    subject = Subject(vicuna_build, Manifest.read(vicuna_build), (), original)
    found = STAGES["accuracy"].run(subject)
    assert found.skipped == "synthetic weights: answers mean nothing"
    assert found.to_json()["passed"] is None


def test_the_block_whose_weight_was_damaged_is_named(vicuna_build, damaged):
    build = damaged(
        vicuna_build,
        "vision_model.encoder.layers.3.mlp.fc1.weight",
        "qformer.encoder.layer.2.intermediate_query.dense.weight",
        "language_model.model.layers.1.mlp.gate_proj.weight",
    )
    blocks = ("vision_encoder", "qformer", "language_model")
    options = [word for stage in blocks for word in ("--stage", stage)]
    result = call(build, "--limit", 4, *options)
    assert result.exit_code == 1
    assert "the error leaves its band in vision_model.encoder.layers.3" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(
        "leaves its band in vision_model.encoder.layers.3"
    )
    found = json.loads(call(build, "--limit", 4, *options, "--json").stdout)["builds"][0]
    assert found["first_out"] == "vision_model.encoder.layers.3"
    assert {name: stage["fault"] for name, stage in found["stages"].items()} == {
        "vision_encoder": "vision_model.encoder.layers.3",
        "qformer": "qformer.encoder.layer.2",
        "language_model": "language_model.model.layers.1",
    }
    for stage in found["stages"].values():
        for errors in stage["blocks"].values():
            # Each block reads the reference's stream, so that no other has an error of its own.
            assert sum(error["own"] > error["own_limit"] for error in errors) == 1


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("encoder.block.1.layer.0.SelfAttention.v.weight", "encoder.block.1"),
        ("decoder.block.2.layer.2.DenseReluDense.wi_0.weight", "decoder.block.2"),
        ("lm_head.weight", "logits"),
    ],
)
def test_of_an_encoder_and_a_decoder_too(flant5_build, damaged, weight, block):
    build = damaged(flant5_build, f"language_model.{weight}")
    result = call(build, "--limit", 4, "--stage", "language_model", "--json")
    assert result.exit_code == 1
    fault = json.loads(result.stdout)["builds"][0]["first_out"]
    assert fault == (block if block == "logits" else f"language_model.{block}")


def test_another_distribution_of_the_first_token_is_told(vicuna_build, damaged):
    build = damaged(
        vicuna_build, "language_model.lm_head.weight", "language_model.model.norm.weight"
    )
    arguments = (build, "--limit", 4, "--stage", "first_token", "--json")
    result = call(*arguments)
    assert result.exit_code == 1
    stage = json.loads(result.stdout)["builds"][0]["stages"]["first_token"]
    assert not stage["passed"]
    assert [check["name"] for check in stage["checks"] if not check["passed"]] == [
        "mean divergence, nats"
    ]


def test_wrong_calls_say_why(vicuna_build, flant5_build, checkpoints, tmp_path):
    (tmp_path / "a.html").mkdir()
    for arguments, message in (
        ((vicuna_build, "--html", tmp_path / "a.html"), "a.html is a directory; name another"),
        ((vicuna_build, "--stage", "visions"), "--stage visions: there is no such stage. Stages:"),
        ((vicuna_build, "--limit", 0), "--limit is 0; expected 1 or more"),
        ((vicuna_build, vicuna_build), "each once"),
        ((), "missing argument"),
        ((vicuna_build, "--html", "report.htm"), "expected a file whose name ends in .html"),
        (
            (vicuna_build, "--html", "nowhere/a.html"),
            "there is no directory nowhere; create it first",
        ),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert message in last_line(result)
    other = checkpoints / "instructblip-demo-flant5"
    for arguments in ((vicuna_build, "--model", other), (vicuna_build, flant5_build)):
        result = call(*arguments)
        assert result.exit_code == 1
        assert "is not the checkpoint that" in last_line(result)
