"""`iblip lint` as a user calls it; and what it says of our own builds."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from checkpoints import DEMOS
from iblip.export.artifact.manifest import Manifest
from iblip.export.system.installing import install_command
from iblip.serving.cli import iblip
from iblip.serving.lint.checking import lint
from iblip.serving.lint.page import rules_page
from iblip.serving.lint.reading import server_of_container
from iblip.serving.repository.assembling import repository_from_engines

DOCS = Path(__file__).parents[3] / "docs"


def call(*arguments):
    return CliRunner().invoke(iblip, ["lint", *(str(word) for word in arguments)])


def rules(report):
    return {finding.rule.id for finding in report.diagnostics}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def repository(make_build):
    directory, manifest = make_build()
    return repository_from_engines(directory, manifest).path


def test_without_tritonclient_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    done = CliRunner().invoke(iblip, ["lint", str(tmp_path)])
    assert done.exit_code == 1
    assert "tritonclient, which is not installed" in done.stderr
    assert f"`{install_command('cpu')}`" in done.stderr


def test_the_page_has_every_rule():
    assert (DOCS / "lint.md").read_text() == rules_page(), "iblip lint --rules > docs/lint.md"
    assert call("--rules").stdout == rules_page()


@pytest.mark.parametrize("name", DEMOS)
def test_our_own_builds_are_clean(name, demo_build):
    assert lint(demo_build(name)).diagnostics == ()


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
    batching = "dynamic_batching {"
    limited = batching + " default_queue_policy { max_queue_size: 3 }"
    edit(repository / "qformer" / "config.pbtxt", batching, limited)
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


def test_a_repository_may_be_named_from_inside_or_outside(repository, monkeypatch):
    (repository / "qformer" / "1" / "gone").symlink_to("nowhere")
    for place, name, path in (
        (repository.parent, ".", "model_repository/qformer/1/gone"),
        (repository.parent, "model_repository", "qformer/1/gone"),
        (repository, ".", "qformer/1/gone"),
    ):
        monkeypatch.chdir(place)
        assert call(name).stdout.startswith(f"{path}: error: ")
    monkeypatch.chdir(repository / "qformer")
    assert f"give the folder above it: {repository}" in call(".").stderr


def test_files_of_the_build_that_are_missing_or_another_are_named(repository):
    manifest = Manifest.read(repository.parent)
    record = manifest.components["qformer"]
    engine = replace(record.engine, details={"bytes": 1})
    components = {**manifest.components, "qformer": replace(record, engine=engine)}
    replace(manifest, components=components).write(repository.parent)
    (repository.parent / manifest.components["vision_encoder"].engine.files["model"]).unlink()
    (repository.parent / "text" / "qformer_tokenizer.json").unlink()
    found = {one.path: one.message for one in lint(repository).diagnostics}
    assert {path.partition("/")[0] for path in found} == {
        "vision_encoder",
        "qformer",
        "instructblip",
    }
    assert "vision_encoder/model.onnx of the build: missing" in found["vision_encoder/config.pbtxt"]
    assert "instead of 1" in found["qformer/config.pbtxt"]


def test_python_models_of_a_build_want_the_way_to_it(repository):
    edit(repository / "qformer" / "config.pbtxt", 'key: "directory"', 'key: "dir"')
    (found,) = lint(repository).diagnostics
    assert (found.rule.id, found.message) == ("build-place", "there is no parameter directory")


@pytest.mark.parametrize("value", [r"\"4\"", "true", "4.5", "[4]"])
def test_a_limit_that_is_no_number_is_named(repository, value):
    edit(repository / "instructblip" / "config.pbtxt", r"\"images\": 4", rf"\"images\": {value}")
    (found,) = lint(repository).diagnostics
    assert found.rule.id == "limits-differ"
    assert found.message.startswith("clients are told images ")


@pytest.mark.parametrize(
    ("model", "old", "new", "rule"),
    [
        ("vision_encoder", "TYPE_FP16", "TYPE_FP32", "engine-data-type"),
        ("vision_encoder", "dims: 48", "dims: 49", "engine-shape"),
        ("vision_encoder", 'name: "pixels"', 'name: "pixel"', "engine-tensor"),
        ("vision_encoder", "kind: KIND_CPU", "kind: KIND_GPU", "gpu-for-cpu-engine"),
        ("qformer", '"../.."', '"../../.."', "build-place"),
        ("instructblip", r"\"queue\": 17", r"\"queue\": 16", "limits-differ"),
    ],
)
def test_a_config_that_is_untrue_to_its_build_is_named(repository, model, old, new, rule):
    path = repository / model / "config.pbtxt"
    edit(path, old, new)
    found = [one for one in lint(repository).diagnostics if one.rule.id == rule]
    assert {one.path for one in found} == {f"{model}/config.pbtxt"}
    assert None not in {one.line for one in found}


@pytest.fixture
def planned(make_build):
    directory, manifest = make_build(kind="tensorrt")
    return repository_from_engines(directory, manifest).path


@pytest.mark.parametrize(
    ("model", "old", "new", "rule"),
    [
        ("qformer", "max_batch_size: 8", "max_batch_size: 16", "plan-batch"),
        ("qformer", 'profile: "0"', 'profile: "1"', "plan-profile"),
        ("qformer", 'profile: "0"', 'profile: "first"', "profile-number"),
        ("qformer", 'most"\n  batch_size: 8', 'most"\n  batch_size: 9', "plan-warmup"),
        ("qformer", "kind: KIND_GPU", "kind: KIND_CPU", "plan-on-cpu"),
        ("instructblip", r"_instruction\": 128", r"_instruction\": 129", "limits-beyond-plan"),
        ("instructblip", r"\"images\": 4", r"\"images\": 9", "limits-beyond-plan"),
    ],
)
def test_a_config_beyond_its_plan_is_named(planned, model, old, new, rule):
    edit(planned / model / "config.pbtxt", old, new)
    found = [one for one in lint(planned).diagnostics if one.rule.id == rule]
    assert [one.path for one in found] == [f"{model}/config.pbtxt"]
    assert found[0].line is not None


def test_a_plan_that_the_container_does_not_load_is_named(make_build):
    directory, manifest = make_build(kind="tensorrt")
    repository_from_engines(directory, manifest)
    found = {"version": "10.14.1.48"}

    def told(container, **details):
        changed = {
            name: replace(one, engine=replace(one.engine, details=details))
            for name, one in manifest.components.items()
        }
        replace(manifest, components=changed).write(directory)
        return rules(lint(directory, server_of_container(container)))

    assert told("26.07-py3", version="11.1.0.106") == set()
    assert told("26.07-py3", **found) == {"plan-version"}
    assert told("26.07-py3", **found, flags=["version-compatible"]) == {"plan-flag"}
    assert told("26.07-vllm-python-py3", **found) == {"backend-not-offered"}
    result = call(directory, "--container", "26.07-py33")
    assert result.exit_code == 2
    assert "Did you mean '26.07-py3'?" in result.stderr


def test_a_plan_of_tensorrt_rtx_in_the_native_backend_is_named(make_build):
    directory, manifest = make_build(kind="tensorrt")
    repository_from_engines(directory, manifest)
    one = manifest.components["qformer"]
    engine = replace(one.engine, kind="tensorrt-rtx")
    components = {**manifest.components, "qformer": replace(one, engine=engine)}
    replace(manifest, components=components).write(directory)
    assert rules(lint(directory)) == {"plan-library", "backend-not-offered"}


CONFIG = """\
name: "m"
backend: "onnxruntime"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


def external(folder, location, size):
    """A model of ONNX Runtime's whose weights of 16 bytes are said to be at `location`."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y], [tensor])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for place in (folder, folder.parent):
        (place / "weights").write_bytes(bytes(size))
    (folder / "linked").symlink_to("../weights")
    (folder / "near").symlink_to("weights")
    (folder.parent / "config.pbtxt").write_text(CONFIG)


@pytest.mark.parametrize(
    ("location", "size", "message"),
    [
        ("weights", 16, None),
        ("near", 16, None),
        ("weights", 15, "it has 15 bytes; expected 16"),
        ("../weights", 16, "outside of"),
        ("linked", 16, "outside of"),
        ("gone", 16, "no such file"),
        ("/absolute/weights", 16, "refuses absolute paths"),
    ],
)
def test_of_external_weights_onnx_runtime_says_the_same(location, size, message, tmp_path):
    folder = tmp_path / "m" / "1"
    external(folder, location, size)
    found = [one for one in lint(tmp_path).diagnostics if one.rule.id == "external-data"]
    assert [one.path for one in found] == ["m/1/model.onnx"] * (message is not None)
    assert message is None or message in found[0].message
    refused = nullcontext() if message is None else pytest.raises(Exception, match="xternal")
    with refused:
        path = str(folder / "model.onnx")
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_links_that_lead_out_or_nowhere_are_named(repository, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    folder = repository / "qformer" / "1"
    (folder / "far").symlink_to(os.path.relpath(tmp_path / "elsewhere", folder))
    (folder / "gone").symlink_to("nothing")
    (folder / "near").symlink_to("../../../manifest.json")  # in the build, which moves whole
    found = {one.path: one.rule.id for one in lint(repository).diagnostics}
    assert found == {"qformer/1/far": "link-leaves", "qformer/1/gone": "link-broken"}
