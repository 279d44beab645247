"""`python -m benchmarks.compare_builds`: what it takes for a difference, and what not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from benchmarks.compare_builds import RENAMED_FIELDS, main

MODEL = "model_repository/vision_encoder"
CONFIG = r'name: "instructblip" string_value: "{\"name\": \"demo\", \"created\": \"2026-11-01\"}"'
"""With a time, as the ensemble's has it."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A build of one graph, whose weight lies in another file."""
    build = tmp_path / "before"
    (build / "graphs").mkdir(parents=True)
    (build / MODEL / "1").mkdir(parents=True)
    (build / MODEL / "config.pbtxt").write_text(CONFIG)
    (build / MODEL / "1" / "model.py").write_text("import serving")
    (build / "inputs.json").write_text("{}")
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weight],
    )
    onnx.save_model(
        helper.make_model(graph),
        build / "graphs/model.onnx",
        save_as_external_data=True,
        location="model.weights",
        size_threshold=0,
    )
    manifest = {
        "created": "2026-11-01",
        "tools": {"torch": "2.13.0"},
        "source": {"path": "/a", "files": {"config.json": "12ab"}},
        "components": {"qformer": {"precision": "fp32", "quantisation": {}}},
        "eos": [2, 3],
    }
    (build / "manifest.json").write_text(json.dumps(manifest))
    return build


@pytest.fixture
def after(before: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(before, tmp_path / "after"))


def compare(before: Path, after: Path) -> Result:
    return CliRunner().invoke(main, [str(before), str(after)])


def change_manifest(build: Path, change: Callable[[dict], object]) -> None:
    path = build / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_equal_builds_are_equal(before, after):
    result = compare(before, after)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0 of ")


def test_what_may_differ_is_not_compared(before, after):
    def change(manifest):
        manifest["created"] = "2026-12-01"
        manifest["tools"]["torch"] = "2.14.0"
        manifest["source"]["path"] = "/b"

    change_manifest(after, change)
    (after / "inputs.json").write_text('{"format": 2}')
    (after / MODEL / "config.pbtxt").write_text(CONFIG.replace("2026-11", "2026-12"))
    (after / "verification").mkdir()
    (after / "verification/report.json").write_text("{}")
    (after / MODEL / "1" / "model.py").write_text("import iblip.serving")
    assert compare(before, after).exit_code == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m["components"]["qformer"].update(precision="fp16"),
            'manifest.json: components.qformer.precision: "fp32" → "fp16"',
        ),
        (lambda m: m["eos"].append(4), "manifest.json: eos.2: (missing) → 4"),
        (
            lambda m: m["source"]["files"].clear(),
            'manifest.json: source.files.config.json: "12ab" → (missing)',
        ),
        (
            lambda m: m["components"]["qformer"].update(quantisation=None),
            "manifest.json: components.qformer.quantisation: {} → null",
        ),
    ],
)
def test_a_field_of_the_manifest_is_named_with_both_values(before, after, change, told):
    change_manifest(after, change)
    result = compare(before, after)
    assert result.exit_code == 1
    assert told in result.stdout.splitlines()


def test_a_renamed_field_is_compared_under_its_name_of_today(before, after, monkeypatch):
    change_manifest(after, lambda m: m.update(stop=m.pop("eos")))
    assert compare(before, after).exit_code == 1
    for index in (0, 1):
        monkeypatch.setitem(RENAMED_FIELDS, f"eos.{index}", f"stop.{index}")
    assert compare(before, after).exit_code == 0
    change_manifest(after, lambda m: m["stop"].reverse())
    assert "manifest.json: stop.0: 2 → 3" in compare(before, after).stdout


def test_one_byte_of_a_weight_is_a_difference_of_its_file_and_its_graph(before, after):
    weights = after / "graphs/model.weights"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    result = compare(before, after)
    assert result.exit_code == 1
    named = [line.split(": ")[0] for line in result.stdout.splitlines()[:-1]]
    assert named == ["graphs/model.onnx, with its weights", "graphs/model.weights"]


def test_a_config_a_new_file_and_a_missing_one_are_named(before, after):
    (after / MODEL / "config.pbtxt").write_text(CONFIG.replace("demo", "other"))
    (after / "text").mkdir()
    (after / "text/tokenizer.json").write_text("{}")
    (before / "graphs/notes.txt").write_text("")
    result = compare(before, after)
    assert result.exit_code == 1
    *lines, _ = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "graphs/notes.txt",
        f"{MODEL}/config.pbtxt",
        "text/tokenizer.json",
    ]
    assert lines[0].endswith("→ (missing)")
    assert ": (missing) → " in lines[2]


def test_what_is_no_build_is_refused(before, tmp_path):
    result = compare(before, tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere is not a build: it has no manifest.json" in result.stderr
