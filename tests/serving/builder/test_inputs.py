from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from iblip.engines.tensorrt.options import PlanOptions
from iblip.export.artifact.manifest import MANIFEST
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError
from iblip.export.progress import Silent
from iblip.serving.builder.build import build
from iblip.serving.builder.inputs import RECORD, find_difference, inputs_of
from iblip.serving.builder.options import (
    BuildOptions,
    CacheOptions,
    EngineOptions,
    LimitOptions,
    SizeOptions,
    VerificationOptions,
)
from iblip.serving.builder.settling import settle


class Notes(Silent):
    def __init__(self):
        self.notes, self.stages = [], []

    def stage(self, title, total=None, unit=""):
        self.stages.append(title)
        return nullcontext(lambda amount: None)

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def made(random_checkpoint, tmp_path_factory):
    """A checkpoint of its own, and the options that its build was made with."""
    place = tmp_path_factory.mktemp("unchanged")
    model = shutil.copytree(random_checkpoint("llama"), place / "model")
    source = ModelSource(model=str(model))
    options = BuildOptions(source=source, output=place / "build", verification=None)
    build(options)
    return model, options


def remove(file):
    file.unlink()


def cut(file):
    os.truncate(file, 300)


@pytest.mark.parametrize("stage", ["write weights", "compare graphs"])
@pytest.mark.parametrize(("harm", "fate"), [(remove, "is gone"), (cut, "was changed")])
def test_a_source_that_changes_meanwhile_is_named(made, tmp_path, stage, harm, fate):
    model = shutil.copytree(made[0], tmp_path / "model")
    file = model / "model.safetensors"

    class Harm(Silent):
        def stage(self, title, total=None, unit=""):
            if title.startswith(stage):
                harm(file)
            return super().stage(title, total, unit)

    source = ModelSource(model=str(model))
    options = BuildOptions(source=source, output=tmp_path / "builds" / "new")
    with pytest.raises(CheckpointError, match=f"{file} {fate} since the build began"):
        build(options, Harm())
    assert list(tmp_path.iterdir()) == [model]


@pytest.fixture
def copy(made, tmp_path):
    """The same, to be changed: its files keep their times, and have other inodes."""
    model, options = made
    model = shutil.copytree(model, tmp_path / "model")
    output = tmp_path / "build"
    shutil.copytree(options.output, output)
    record = json.loads((output / RECORD).read_text())
    text = json.dumps(record).replace(str(made[0]), str(model))
    record = json.loads(text)
    for stamps, place in ((record["sources"], Path("/")), (record["files"], output)):
        for name, stamp in stamps.items():
            stamp["inode"] = (place / name).stat().st_ino
    (output / RECORD).write_text(json.dumps(record))
    options = replace(options, source=ModelSource(model=str(model)), output=output)
    assert change(options) is None
    return model, options


def change(options):
    return find_difference(options.output, inputs_of(settle(options, Silent())))


def test_the_same_build_again_is_left_as_it_is_unless_it_is_forced(copy):
    _, options = copy
    before = (options.output / MANIFEST).stat()
    progress = Notes()
    assert build(options, progress) == options.output
    assert progress.stages == []
    assert progress.notes[-1] == f"{options.output} is this build already. --force makes it again."
    assert (options.output / MANIFEST).stat() == before

    progress = Notes()
    build(replace(options, force=True), progress)
    assert "assemble the Triton repository" in progress.stages
    assert (options.output / MANIFEST).stat().st_ino != before.st_ino
    assert change(options) is None


def test_what_has_changed_is_said_and_built(copy):
    _, options = copy
    progress = Notes()
    larger = replace(options, sizes=SizeOptions(max_batch=16))
    build(larger, progress)
    assert f"{options.output} is built anew: --max-batch is 16, and was 8" in progress.notes
    assert "assemble the Triton repository" in progress.stages
    assert change(larger) is None


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"sizes": SizeOptions(max_batch=4)}, "--max-batch is 4, and was 8"),
        ({"precision": "fp16"}, "--precision is fp16, and was fp32"),
        ({"precision": "int8"}, "--precision is int8, and was fp32"),
        ({"verification": VerificationOptions()}, "--verify is True, and was False"),
        ({"limits": LimitOptions(slots=3)}, "--slots is 3, and was 8"),
        ({"limits": LimitOptions(prefix_cache=False)}, "--prefix-cache is False, and was True"),
        (
            {"engines": EngineOptions(engine="onnxruntime-cuda")},
            "--engine is onnxruntime-cuda, and was onnxruntime",
        ),
        ({"engines": EngineOptions(engine="onnxruntime")}, None),
        ({"precision": "vision_encoder=fp32"}, None),
        ({"limits": LimitOptions(slots=8)}, None),
        ({"sizes": SizeOptions(max_batch=8)}, None),
        ({"caches": CacheOptions(engines=None, traces=None)}, None),
    ],
)
def test_another_option_is_another_build(copy, changed, found):
    _, options = copy
    assert change(replace(options, **changed)) == found


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("--target", {"plans": PlanOptions(targets=("sm86",))}),
        ("--builder-flag", {"plans": PlanOptions(targets=("sm89",), flags=("strict-nans",))}),
        ("the choice of profiles", {"sizes": SizeOptions(profiles=("batch=1:1:8",))}),
        ("the choice of profiles", {"sizes": SizeOptions(opt_batch=1)}),
        ("--workspace", {"plans": PlanOptions(targets=("sm89",), workspace=64)}),
    ],
)
def test_plans_are_those_of_a_target_and_of_their_options(made, option, changed):
    pytest.importorskip("tensorrt_rtx_bindings")
    plain = replace(
        made[1],
        engines=EngineOptions(engine="tensorrt-rtx"),
        plans=PlanOptions(targets=("sm89",)),
        precision="fp16",
    )
    was, now = (
        inputs_of(settle(options, Silent())).told for options in (plain, replace(plain, **changed))
    )
    assert was["what builds plans"]["version"]
    assert [name for name in was if was[name] != now[name]] == [option]


def test_a_changed_weight_is_another_build(copy):
    model, options = copy
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert change(options) == f"{weights} has changed"


def test_a_file_that_was_only_touched_or_copied_is_the_same(copy):
    model, options = copy
    for path in model.rglob("*.json"):
        os.utime(path, (1, 1))
    weights = model / "model.safetensors"
    shutil.copyfile(weights, model / "again")
    (model / "again").replace(weights)
    assert change(options) is None


def test_files_come_and_go(copy):
    model, options = copy
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert change(options) == f"{model / 'chat_template.jinja'} is new"
    (model / "chat_template.jinja").unlink()
    (model / "generation_config.json").unlink()
    assert change(options) == f"{model / 'generation_config.json'} is gone"


def test_other_code_or_another_library_is_another_build(copy, monkeypatch):
    _, options = copy
    monkeypatch.setattr("iblip.serving.builder.inputs.library_versions", lambda: {"torch": "3.0"})
    assert "the version of " in change(options)
    monkeypatch.undo()
    monkeypatch.setattr("iblip.serving.builder.inputs.code_digest", lambda *_: "0" * 64)
    assert change(options) == "the code of this project is another"


def test_a_build_that_is_no_longer_whole_is_made_anew(copy):
    _, options = copy
    config = options.output / "model_repository" / "qformer" / "config.pbtxt"
    whole = config.read_bytes()
    config.write_bytes(whole + b"# by hand\n")
    told = "its own model_repository/qformer/config.pbtxt has changed, or is gone"
    assert change(options) == told
    config.unlink()
    assert change(options) == told
    (options.output / RECORD).write_text("{}")
    assert change(options) == f"it has no {RECORD} that can be read"
    (options.output / RECORD).unlink()
    assert change(options) == f"it has no {RECORD} that can be read"
    build(options)
    assert change(options) is None
    assert config.read_bytes() == whole


def test_images_that_examples_name_are_sources_wherever_they_lie(copy, tmp_path):
    _, options = copy
    image = tmp_path / "elsewhere.png"
    Image.new("RGB", (8, 8)).save(image)
    examples = tmp_path / "examples"
    examples.mkdir()
    asked = {"id": "0", "image": "../elsewhere.png", "prompt": "What is it?"}
    (examples / "examples.jsonl").write_text(json.dumps(asked))
    options = replace(options, verification=VerificationOptions(examples=examples))
    sources = inputs_of(settle(options, Silent())).sources
    assert str(examples / "examples.jsonl") in sources
    (stamp,) = [stamp for path, stamp in sources.items() if path.endswith("elsewhere.png")]
    assert stamp.holds(image)
    Image.new("RGB", (8, 8), "red").save(image)
    assert not stamp.holds(image)


@pytest.mark.parametrize("precision", ["fp32", "lavis"])
def test_a_build_inside_its_checkpoint_is_none_of_its_own_sources(made, monkeypatch, precision):
    """The directory is called after the policy that was asked for, whatever becomes of it."""
    model, options = made
    monkeypatch.chdir(model)
    settled = settle(replace(options, output=None, precision=precision), Silent())
    assert settled.destination == model / "build" / f"model-{precision}"
    settled.destination.mkdir(parents=True)
    (settled.destination / "manifest.json").touch()
    sources = inputs_of(settled).sources
    shutil.rmtree(model / "build")
    assert str(model / "config.json") in sources
    assert not [path for path in sources if path.endswith("manifest.json")]
