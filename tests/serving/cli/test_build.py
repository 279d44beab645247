"""`iblip build`, `verify` and `inspect`, as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoints import DEMOS
from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.pipeline import Pipeline
from iblip.engines.runners import open_runner
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.text.instructions import InstructionTokenizer
from iblip.export.artifact.manifest import Manifest, ServingLimits
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import EngineError, InputError
from iblip.export.images import pixels_from_image
from iblip.export.precision import INT4
from iblip.serving.builder.build import build
from iblip.serving.builder.options import (
    BuildOptions,
    EngineOptions,
    SizeOptions,
    VerificationOptions,
)
from iblip.serving.cli import export
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.repository.model_config import read_config
from iblip.serving.wire.contract import ServerContract
from tests.cases import exhaustive

T5 = DEMO.with_name("instructblip-demo-flant5")


def call(*arguments):
    return CliRunner().invoke(export, [str(word) for word in arguments], prog_name="export")


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["build", "--precision", "fp9"], 2, "there is no precision 'fp9'; known: fp32, fp16"),
        (["build", "--engine", "tensort"], 2, "Did you mean 'tensorrt'"),
        (["build", "--max-batch", "0"], 2, "--max-batch is 0; expected 1 or more"),
        (["build", "--slots", "0"], 2, "--slots is 0; expected 1 or more"),
        (["build", "--queue", "0"], 2, "--queue is 0; expected 1 or more"),
        (
            ["build", "--max-length", "9999"],
            2,
            "--max-length is 9999; this model's sequences have 10 to 1024 positions, 8 of them",
        ),
        (["build", "--max-length", "9"], 2, "--max-length is 9; this model's sequences have 10"),
        (["build", "--max-images", "0"], 2, "--max-images is 0; expected 1 or more"),
        (["build", "--max-images", "200"], 2, "--max-images is 200; expected at most 127: with"),
        (
            ["build", "--max-images", "3", "--max-length", "25"],
            2,
            "--max-images is 3; expected at most 2",
        ),
        (["build", "--model", "nowhere"], 2, "there is no checkpoint directory"),
        (["build", "--examples", "nowhere"], 2, "there is no nowhere/examples.jsonl"),
        (["build", "--dry-run", "--examples", "nowhere"], 2, "there is no nowhere/examples.jsonl"),
        (["build", "--model", DEMO, "--part", "vit"], 2, "--part vit: expected NAME=PATH"),
        (["build", "--model", "laviz:a/b"], 2, "there is no reader for laviz:"),
        (["build", "--model", DEMO, "--revision", "x"], 2, "--revision is for models of the hub"),
        (["build", "--image-size", "0"], 2, "--image-size is 0; expected 1 or more"),
        (["build", "--image-size", "50"], 2, "--image-size is 50; expected a multiple of 12"),
        (["verify", "nowhere"], 2, "there is no directory nowhere"),
        (["inspect", "."], 1, "is not a build: it has no manifest.json"),
        (["build", "--target", "sm89"], 2, "--target sm89 is for plans"),
        (["build", "--engine", "tensorrt-rtx"], 2, "no NVIDIA GPU to build for here"),
        (
            ["build", "--engine", "tensorrt-rtx", "--target", "sm90"],
            2,
            "--target sm90: tensorrt-rtx",
        ),
        (["build", "--builder-flag", "refits"], 2, "Did you mean 'refit'?"),
        (["build", "--workspace", "64"], 2, "--workspace is for --engine tensorrt, tensorrt-rtx,"),
        (["build", "--max-instruction", "9"], 2, "onnxruntime takes instructions of any length"),
        (["build", "--profile", "batch=1"], 2, "--profile is for --engine tensorrt"),
        (
            ["build", "--engine", "onnxruntime-tensorrt", "--profile", "batch=1:1:4"],
            2,
            "no --profile that holds every request",
        ),
        (["build", "--llm-engine", "vlm"], 2, "--llm-engine is 'vlm'; expected one of onnxruntime"),
        (["build", "--tensor-parallel", "2"], 2, "--tensor-parallel is vLLM's. Add --llm-engine"),
        (["build", "--llm-engine", "vllm", "--executor", "dask"], 2, "--executor is 'dask'"),
        (
            ["build", "--llm-engine", "vllm", "--tensor-parallel", "3"],
            2,
            "this model's 4 attention heads can be spread over 1, 2, 4",
        ),
        (
            ["build", "--llm-engine", "vllm", "--model", T5],
            2,
            "a language model of type 't5'; vLLM takes visual prompts only for llama, opt",
        ),
    ],
)
def test_a_call_that_cannot_work_says_why(tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == status
    assert message in last_line(result)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused():
    assert call("build", "--precison", "fp16").exit_code == 2


def test_an_output_that_is_no_build_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for dry in ((), ("--dry-run",)):
        result = call("build", "--output", tmp_path, *dry)
        assert result.exit_code == 1
        assert "is not a build" in result.stderr.splitlines()[0]  # before anything is loaded
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_would_fail_after_hours_is_refused_at_once(tmp_path, monkeypatch, dry):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(DEMO, tmp_path / "model", ignore=shutil.ignore_patterns("examples"))
    static = ("--precision", "int8", "--int8", "static")
    result = call("build", "--model", model, *static, *dry)
    assert result.exit_code == 2
    assert "and " + str(model) + " has no examples. Name a directory" in last_line(result)
    assert "trace " not in result.stderr

    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "text.png").write_text("text")
    result = call("build", *static, "--calibration", examples, *dry)
    assert result.exit_code == 2
    assert "text.png is not an image that Pillow can read" in last_line(result)
    assert "trace " not in result.stderr
    for line, message in (
        ('{"id": 1}', "line 1 has no 'image'"),
        ('{"id": 1, "image": "gone.png", "prompt": "?"}', "names images that are not there"),
        ('{"id": 1, "image": "text.png", "prompt": "?"}', "text.png is not an image that Pillow"),
    ):
        (examples / "examples.jsonl").write_text(line)
        result = call("build", "--examples", examples, *dry)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "trace " not in result.stderr
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("word", ["FP16", "float16", "half"])
def test_usual_spellings_of_a_precision_are_known(word):
    options = BuildOptions(precision=f"vision_encoder={word},language_model=int4")
    assert options.policy.vision_encoder == "fp16"
    assert options.policy.language_model == "int4"
    assert BuildOptions(precision=word).destination == BuildOptions(precision="fp16").destination


def test_a_build_of_another_image_size_is_proven_and_answers(tmp_path, checkpoints):
    options = ("--image-size", 96, "--limit", 4, "--output", tmp_path / "build")
    result = call("build", *options)
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(tmp_path / "build")
    assert (manifest.preprocessing.height, manifest.preprocessing.width) == (96, 96)
    assert manifest.source["image_size"] == 96
    assert manifest.verification["text"]["same_text"] == 4
    result = call("verify", tmp_path / "build", "--limit", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"]
    image = next((checkpoints / "heldout" / "images").iterdir())
    pixels = pixels_from_image(image, manifest.preprocessing)
    with Pipeline(tmp_path / "build") as pipeline:
        assert pipeline.encode_image(pixels[None]).shape == (1, 65, 128)
        assert pipeline.answer(pixels, "What digit is in the image?").text


def test_inspect_shows_contracts_and_proof(flant5_build):
    result = call("inspect", flant5_build, "--digests")
    assert result.exit_code == 0, result.output
    assert "pixels uint8 [batch, 72, 72, 3]" in result.stdout
    assert "language_model: fp32 on onnxruntime" in result.stdout
    assert "6 graphs compared" in result.stdout


def test_four_bit_weights_are_small_and_answer_alike(checkpoints, tmp_path):
    model = checkpoints / "instructblip-demo-vicuna"
    directory = build(
        BuildOptions(
            source=ModelSource(model=str(model)),
            output=tmp_path / "build",
            precision="int4",
            verification=VerificationOptions(limit=24),
        )
    )
    manifest = Manifest.read(directory)
    assert manifest.precision == INT4
    assert manifest.verification["text"]["agreement"] >= 0.95
    found = manifest.verification["graphs"]["language_model/batched_decoder"]
    assert found["max_abs"] > 1e-3  # four bits were used
    graphs = directory / "graphs" / "language_model"
    written = [path for path in graphs.glob("*.weights") if path.stat().st_nlink == 1]
    assert 0 < sum(path.stat().st_size for path in written) < 0.2 * size_of_weights(model)


def size_of_weights(model):
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_no_verify_limits_and_engines_of_a_gpu_are_written_down(tmp_path):
    options = ("--no-verify", "--slots", 3, "--max-length", 100, "--queue", 7, "--max-images", 9)
    engine = ("--engine", "onnxruntime-tensorrt", "--max-instruction", 32, "--no-prefix-cache")
    result = call("build", "--output", tmp_path / "build", *options, *engine)
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(tmp_path / "build")
    assert manifest.verification == {"skipped": "--no-verify"}
    assert manifest.limits == ServingLimits(
        slots=3,
        max_length=100,
        queue=7,
        images=9,
        max_batch=9,
        max_instruction=32,
        prefix_cache=False,
    )
    engines = {name: record.engine for name, record in manifest.components.items()}
    assert engines["vision_encoder"].kind == engines["qformer"].kind == "onnxruntime-tensorrt"
    assert engines["qformer"].details["profiles"][0]["instruction"] == [1, 8, 32]
    assert engines["language_model"].kind == "onnxruntime"  # CUDA runs no float32 attention
    assert "the language model stays on the CPU" in result.output
    if not has_nvidia_gpu():
        assert "It is built here, but cannot run here: " in result.output
        with pytest.raises(EngineError, match="TensorrtExecutionProvider cannot run here"):
            open_runner(tmp_path / "build", manifest, "qformer").__enter__()
    shown = call("inspect", tmp_path / "build").stdout
    assert "limits: 3 slots of 100 positions (the model's own: 1024), 7 requests may wait" in shown
    assert "9 images a request at most" in shown


# One of every family: the language model has no plan. LLaMA and OPT are traced sooner than T5.
PLANNED = ("instructblip-demo-vicuna", "blip2-demo-opt", "minigpt4-demo-llama2")


@pytest.mark.parametrize("name", [name if name in PLANNED else exhaustive(name) for name in DEMOS])
def test_tensorrt_rtx_plans_of_every_family_are_really_built(checkpoints, tmp_path, name):
    pytest.importorskip("tensorrt_rtx_bindings")
    engine = ("--engine", "tensorrt-rtx", "--target", "sm89", "--precision", "fp16")
    result = call(
        *("build", "--model", checkpoints / name, "--output", tmp_path / "build", *engine),
        *("--limit", 4),
    )
    assert result.exit_code == 0, result.output
    assert "same text as transformers on 4 of 4 examples" in result.stderr
    manifest = Manifest.read(tmp_path / "build")
    for component in ("vision_encoder", "qformer"):
        record = manifest.components[component].engine
        assert (record.kind, record.details["targets"]) == ("tensorrt-rtx", ["sm89"])
        assert record.details["layers"].keys() == {"HALF"}  # of every product with a weight
        plan = tmp_path / "build" / record.files["model"]
        assert plan.stat().st_size == record.details["bytes"]
    assert manifest.components["language_model"].engine.kind == "onnxruntime"


def test_plans_limits_and_refusals_come_from_the_same_sizes(checkpoints, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    options = BuildOptions(
        source=ModelSource(model=str(checkpoints / "instructblip-demo-vicuna")),
        output=tmp_path / "build",
        precision="fp16",
        engines=EngineOptions(engine="tensorrt-rtx"),
        plans=PlanOptions(targets=("sm89", "sm120"), flags=("strict-nans",)),
        sizes=SizeOptions(max_batch=6, opt_batch=1, max_instruction=16),
        verification=None,
    )
    directory = build(options)
    manifest = Manifest.read(directory)
    for component in ("vision_encoder", "qformer"):
        details = manifest.components[component].engine.details
        assert details["targets"] == ["sm89", "sm120"]
        assert details["flags"] == ["strict-nans"]
        (profile,) = details["profiles"]
        assert profile["batch"] == [1, 1, 6]
    assert profile["instruction"] == [1, 4, 16]
    assert (manifest.limits.max_batch, manifest.limits.max_instruction) == (6, 16)
    config = read_config(directory / REPOSITORY / "qformer" / "config.pbtxt")
    assert config.max_batch_size == 6
    assert ServerContract.from_manifest(manifest).limits.max_instruction == 16
    instructions = InstructionTokenizer.from_build(directory, manifest)
    assert instructions is not None
    with pytest.raises(
        InputError, match=r"at most 16 fit\. .*`--max-instruction` of `iblip build`"
    ):
        instructions("word " * 40)


def test_a_build_that_is_killed_while_it_writes_weights_leaves_the_one_before(
    vicuna_build, tmp_path
):
    destination = Path(shutil.copytree(vicuna_build, tmp_path / "build"))
    # It verifies afterwards, so that there is something left to be killed on the slowest machine.
    command = [sys.executable, "-m", "export", "build", "--precision", "fp16"]
    for ended_by in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(
            [*command, "--output", str(destination)], stderr=subprocess.DEVNULL
        ) as process:
            while not list(tmp_path.glob(".build.building-*/graphs/*/*.weights")):
                assert process.poll() is None
                time.sleep(0.001)
            os.kill(process.pid, ended_by)
        left = list(tmp_path.glob(".build.building-*"))
        assert bool(left) == (ended_by == signal.SIGKILL)  # the next build removes it
        assert (tmp_path / ".build.lock").exists() == (ended_by == signal.SIGKILL)
        result = call("inspect", destination, "--digests")
        assert result.exit_code == 0, result.output


def test_a_progress_line_a_stage_where_there_is_no_terminal(build_output):
    assert "  write weights (" in build_output
    assert "\r" not in build_output


@pytest.fixture(scope="module")
def build_output(checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "build"
    result = call("build", "--output", output, "--no-verify")
    assert result.exit_code == 0, result.output
    return result.stderr
