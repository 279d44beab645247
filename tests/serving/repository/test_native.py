"""Engines in Triton's own backends: their configs, and that ONNX Runtime reads their files."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from iblip.engines.onnxruntime.session import open_session
from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError, ServingError
from iblip.serving.cli import export, iblip
from iblip.serving.lint.checking import lint
from iblip.serving.lint.rule import Severity
from iblip.serving.repository.assembling import check_backends, repository_from_engines
from iblip.serving.repository.model_config import read_config
from iblip.serving.repository.native import (
    CHOICES,
    ENGINES,
    backend_for,
    flags_for,
    remark_on_native,
)
from iblip.serving.server.installation import Installation


def assembled(make_build, kind: str, edit=None, **options):
    directory, manifest = make_build(kind=kind)
    if edit is not None:
        manifest = edit(manifest)
    repository = repository_from_engines(directory, manifest, backend="native", **options)
    names = ("vision_encoder", "qformer")
    return repository, [read_config(repository.path / name / "config.pbtxt") for name in names]


def with_details(manifest: Manifest, **details) -> Manifest:
    components = {
        name: replace(record, engine=replace(record.engine, details=details))
        for name, record in manifest.components.items()
    }
    return replace(manifest, components=components)


def parameters(config):
    return {name: config.parameters[name].string_value for name in config.parameters}


def accelerators(config):
    several = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {one.name: dict(one.parameters) for one in several}


@pytest.mark.parametrize("kind", ENGINES)
def test_every_native_repository_is_clean_but_for_the_servers_backends(make_build, kind):
    repository, _ = assembled(make_build, kind)
    found = lint(repository.path).diagnostics
    assert {one.rule.id for one in found} == {"backend-not-offered"}
    assert {one.rule.severity for one in found} == {Severity.NOTE}


@pytest.mark.parametrize("kind", ENGINES)
def test_instances_are_where_the_engine_runs(make_build, kind):
    _, configs = assembled(make_build, kind)
    group = configs[0].instance_group[0]
    kinds = type(group)
    assert group.kind == (kinds.KIND_CPU if kind == "onnxruntime" else kinds.KIND_GPU)
    assert not group.gpus  # one on each
    assert not configs[0].parameters["build"].string_value


def test_a_plan_is_warmed_up_at_its_profiles_sizes(make_build):
    _, (_, qformer) = assembled(make_build, "tensorrt")
    warm = {
        sample.name: (sample.batch_size, list(sample.inputs["qformer_input_ids"].dims))
        for sample in qformer.model_warmup
    }
    assert warm == {
        "one instruction": (1, [16]),
        "profile 0, usual": (2, [32]),
        "profile 0, most": (8, [128]),
    }
    assert list(qformer.model_warmup[1].inputs["image_embeds"].dims) == [17, 96]


def test_a_warm_up_is_cut_to_what_the_plan_takes(make_build):
    profiles = [{"batch": [1, 2, 8], "instruction": [1, 4, 8]}]
    _, (_, qformer) = assembled(
        make_build, "tensorrt", lambda m: with_details(m, profiles=profiles)
    )
    assert list(qformer.model_warmup[0].inputs["qformer_input_ids"].dims) == [8]


def test_instances_may_use_every_profile_and_graphs_are_recorded_at_warmed_shapes(make_build):
    profiles = [
        {"batch": [1, 1, 1], "instruction": [1, 16, 32]},
        {"batch": [1, 4, 6], "instruction": [32, 32, 32]},
    ]
    _, (vision, qformer) = assembled(
        make_build, "tensorrt", lambda m: with_details(m, profiles=profiles), max_batch=6
    )
    assert list(qformer.instance_group[0].profile) == ["0", "1"]
    cuda = vision.optimization.cuda
    assert cuda.graphs
    assert [one.batch_size for one in cuda.graph_spec] == [1, 2, 4, 6]
    assert list(cuda.graph_spec[0].input["pixels"].dim) == [48, 64, 3]
    recorded = [
        (one.input["qformer_input_ids"].dim[0], one.batch_size)
        for one in qformer.optimization.cuda.graph_spec
    ]
    assert recorded == [(16, 1), (32, 1), (32, 2), (32, 4), (32, 6)]  # as the profiles have it


def test_a_batch_beyond_the_profiles_is_refused(make_build):
    with pytest.raises(ServingError, match="takes batches up to 8, but the build asks for 9"):
        assembled(make_build, "tensorrt", max_batch=9)


def test_only_plans_record_cuda_graphs(make_build):
    _, configs = assembled(make_build, "onnxruntime")
    assert not configs[0].HasField("optimization")


def test_on_a_cpu_onnx_runtime_is_told_its_threads(make_build):
    _, configs = assembled(make_build, "onnxruntime")
    assert configs[0].backend == "onnxruntime"
    assert parameters(configs[0]) == {
        "intra_op_thread_count": "0",
        "inter_op_thread_count": "1",
        "enable_mem_arena": "1",
    }


def test_cudas_provider_is_told_what_the_runner_tells_it(make_build):
    _, configs = assembled(make_build, "onnxruntime-cuda")
    # By number: of these Triton heeds parameters alone.
    assert parameters(configs[0]) == {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1"}
    assert accelerators(configs[0]) == {"cuda": {"sdpa_kernel": "3", "use_tf32": "0"}}


def test_tensorrts_provider_is_told_profile_and_cache(make_build):
    _, (_, qformer) = assembled(make_build, "onnxruntime-tensorrt")
    told = accelerators(qformer)
    assert told["tensorrt"]["trt_profile_max_shapes"] == (
        "image_embeds:8x17x96,qformer_input_ids:8x128,qformer_attention_mask:8x128"
    )
    assert told["tensorrt"]["trt_engine_cache_enable"] == "1"
    assert told["tensorrt"]["trt_engine_cache_prefix"] == "qformer"
    assert told["tensorrt"]["precision_mode"] == "FP32"
    assert "trt_fp16_enable" not in told["tensorrt"]  # Triton refuses what it does not know
    assert told["cuda"] == {"sdpa_kernel": "3", "use_tf32": "0"}  # takes what TensorRT leaves
    assert [sample.batch_size for sample in qformer.model_warmup] == [1, 2, 8]


def test_triton_needs_a_flag_for_plans_that_are_version_compatible(make_build):
    _, manifest = make_build(kind="tensorrt")
    assert flags_for(manifest) == ()
    manifest = with_details(manifest, flags=["version-compatible"])
    assert flags_for(manifest) == ("--backend-config=tensorrt,version-compatible=true",)


def test_images_that_are_encoded_anew_are_told_of():
    told = remark_on_native("tensorrt", backend_for("tensorrt"))
    assert "every question encodes its image again" in told
    assert remark_on_native("tensorrt", "python") is None
    assert remark_on_native("onnxruntime-cuda", backend_for("onnxruntime-cuda")) is None


def test_what_carries_an_engine():
    assert backend_for("tensorrt") == "native"
    assert backend_for("onnxruntime-cuda") == "python"
    assert backend_for("tensorrt", "python") == "python"
    with pytest.raises(OptionError, match="no backend of its own for --engine tensorrt-rtx"):
        backend_for("tensorrt-rtx", "native")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--triton-backend", "natve"], f"'natve'; expected one of {', '.join(CHOICES)}"),
        (["--engine", "tensorrt-rtx", "--target", "sm89"], "no backend of its own"),
        (["--precision", "bf16"], "ONNX Runtime cannot open a bf16 graph directly"),
    ],
)
def test_a_build_that_no_backend_carries_is_refused_before_it_begins(options, message, tmp_path):
    chosen = [] if "--triton-backend" in options else ["--triton-backend", "native"]
    arguments = ["build", *chosen, *options, "--output", str(tmp_path / "build")]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "build").exists()


def test_a_server_without_the_backend_is_refused_before_it_starts(make_build):
    repository, _ = assembled(make_build, "tensorrt")
    directory = repository.path.parent
    result = CliRunner().invoke(iblip, ["serve", str(directory)])
    assert result.exit_code == 1
    assert "lacks the backend of qformer (tensorrt), vision_encoder (tensorrt)" in result.stderr
    assert "it has python. Serve the build in NVIDIA's container" in result.stderr
    assert "docker compose -f deploy/compose.yaml" in result.stderr


def test_a_server_with_the_backends_is_not(make_build, tmp_path):
    repository, _ = assembled(make_build, "tensorrt")
    for name in ("python", "tensorrt"):
        (tmp_path / "server" / "backends" / name).mkdir(parents=True)
    server = Installation(binary=tmp_path / "server" / "bin" / "tritonserver", origin="a test")
    check_backends(repository.path.parent, server)


@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
def test_onnx_runtime_reads_graph_and_weights_where_triton_does(vicuna_build, component, tmp_path):
    build = tmp_path / "build"
    ignored = shutil.ignore_patterns("model_repository")
    shutil.copytree(vicuna_build, build, copy_function=os.link, ignore=ignored)
    manifest = Manifest.read(build)
    repository_from_engines(build, manifest, backend="native")
    build = build.rename(tmp_path / "elsewhere")
    folder = build / "model_repository" / component / "1"
    assert lint(build).passed(strict=True)

    contract = manifest.components[component].graphs["model"].contract
    rng = np.random.default_rng(0)
    feed = {
        spec.name: rng.integers(
            0, 2, [axis if isinstance(axis, int) else 2 for axis in spec.axes]
        ).astype(spec.numpy_dtype)
        for spec in contract.inputs
    }
    names = [spec.name for spec in contract.outputs]
    found = open_session(folder / "model.onnx", contract).run(names, feed)
    with open_runner(build, manifest, component) as runner:
        wanted = runner.infer(feed)
    assert all(np.array_equal(one, wanted[name]) for name, one in zip(names, found, strict=True))

    # A link to each file's place, one by one, would not do where only the weights are elsewhere.
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in folder.iterdir():
        (alone / file.name).symlink_to(file.resolve())
    (alone / "model.onnx").unlink()
    shutil.copyfile(folder / "model.onnx", alone / "model.onnx")
    with pytest.raises(Exception, match="escapes model directory"):
        open_session(alone / "model.onnx", contract)


def test_a_missing_graph_is_named(make_build):
    directory, manifest = make_build()
    Path(directory / manifest.components["qformer"].engine.files["model"]).unlink()
    with pytest.raises(ServingError, match=r"engine of qformer is missing: .*model\.onnx"):
        repository_from_engines(directory, manifest, backend="native")
