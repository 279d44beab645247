"""`iblip lint` as a user calls it; and what it says of our own builds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.cli import iblip
from serving.lint.checking import lint
from serving.lint.page import page
from serving.repository import repository_from_engines

DOCS = Path(__file__).parents[3] / "docs"
FAMILIES = (
    "instructblip-demo-vicuna",
    "instructblip-demo-flant5",
    "blip2-demo-opt",
    "blip2-demo-flant5",
    "minigpt4-demo",
    "minigpt4-demo-llama2",
)


def call(*arguments):
    return CliRunner().invoke(iblip, ["lint", *(str(word) for word in arguments)])


def rules(report):
    return {finding.rule.id for finding in report.findings}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def repository(make_build):
    directory, manifest = make_build()
    return repository_from_engines(directory, manifest).path


def test_the_page_has_every_rule():
    assert (DOCS / "lint.md").read_text() == page(), "iblip lint --rules > docs/lint.md"
    assert call("--rules").stdout == page()


@pytest.mark.parametrize("name", FAMILIES)
def test_our_own_builds_are_clean(name, demo_build):
    assert lint(demo_build(name)).findings == ()


def test_a_finding_names_file_line_reason_and_remedy(repository):
    edit(repository / "qformer" / "config.pbtxt", "batch_size: 1", "batch_size: 9")
    result = call(repository.parent)
    assert result.exit_code == 1
    first, why, do, *_ = result.stdout.splitlines()
    assert first.startswith("model_repository/qformer/config.pbtxt:")
    assert first.endswith("has a batch of 9; max_batch_size is 8 [warmup-batch]")
    assert why.startswith("    why: ")
    assert do.startswith("    do:  ")
    found = json.loads(call(repository.parent, "--json").stdout)
    assert found["errors"] == 1
    assert found["findings"][0]["file"] == "model_repository/qformer/config.pbtxt"


def test_warnings_fail_only_where_they_are_asked_to(repository):
    edit(repository / "qformer" / "config.pbtxt", "allow_timeout_override: true", "")
    assert call(repository).exit_code == 0
    assert call(repository, "--strict").exit_code == 1


@pytest.mark.parametrize("name", ["nowhere", "empty", "one"])
def test_a_call_without_a_repository_is_wrong(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.pbtxt").touch()
    result = call(tmp_path / name)
    assert result.exit_code == 2
    assert str(tmp_path / name) in result.stderr


@pytest.mark.parametrize(
    ("model", "old", "new", "rule"),
    [
        ("vision_encoder", "TYPE_FP16", "TYPE_FP32", "engine-data-type"),
        ("vision_encoder", "dims: 48", "dims: 49", "engine-shape"),
        ("vision_encoder", 'name: "pixels"', 'name: "pixel"', "engine-tensor"),
        ("vision_encoder", "kind: KIND_CPU", "kind: KIND_GPU", "gpu-for-cpu-engine"),
        ("tokenizer", '"../.."', '"../../.."', "build-place"),
        ("instructblip", r"\"queue\": 17", r"\"queue\": 16", "limits-differ"),
    ],
)
def test_a_config_that_is_untrue_to_its_build_is_named(repository, model, old, new, rule):
    path = repository / model / "config.pbtxt"
    edit(path, old, new)
    found = [one for one in lint(repository).findings if one.rule.id == rule]
    assert {one.path for one in found} == {f"{model}/config.pbtxt"}
    assert None not in {one.line for one in found}


def test_links_that_lead_out_or_nowhere_are_named(repository, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    folder = repository / "qformer" / "1"
    (folder / "far").symlink_to(os.path.relpath(tmp_path / "elsewhere", folder))
    (folder / "gone").symlink_to("nothing")
    (folder / "near").symlink_to("../../../manifest.json")  # in the build, which moves whole
    found = {one.path: one.rule.id for one in lint(repository).findings}
    assert found == {"qformer/1/far": "link-leaves", "qformer/1/gone": "link-broken"}
