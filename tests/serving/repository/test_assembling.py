"""The assembled repository, read back as Triton reads it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import model_repository
from iblip.engines.kinds import KINDS
from iblip.export.artifact.manifest import ComponentRecord, EngineRecord
from iblip.export.errors import ServingError
from iblip.serving.decoding.settings import DecodingSettings
from iblip.serving.repository.assembling import repository_from_engines
from iblip.serving.repository.model_config import read_config
from iblip.serving.repository.native import place_instances
from iblip.serving.wire.contract import ServerContract

SOURCES = sorted(Path(model_repository.__file__).parent.glob("*/config.pbtxt"))


def configs(repository):
    read = {}
    for name in repository.models:
        text = (repository.path / name / "config.pbtxt").read_text()
        read[name] = text_format.Parse(text, model_config_pb2.ModelConfig())
    return read


def tensors(group):
    names = model_config_pb2.DataType.Name
    return {t.name: (names(t.data_type), list(t.dims)) for t in group}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.parent.name)
def test_every_source_is_a_config_named_as_its_folder(path):
    assert read_config(path).name == path.parent.name


def test_sizes_and_data_types_come_from_the_contracts(make_build):
    directory, manifest = make_build()
    read = configs(repository_from_engines(directory, manifest, max_batch=4))

    vision = read["vision_encoder"]
    assert tensors(vision.input) == {"pixels": ("TYPE_UINT8", [48, 64, 3])}
    assert tensors(vision.output) == {"image_embeds": ("TYPE_FP16", [17, 96])}
    assert vision.max_batch_size == 4
    warm = vision.model_warmup[0].inputs["pixels"]
    assert list(warm.dims) == [48, 64, 3]

    qformer = read["qformer"]
    assert tensors(qformer.input)["qformer_input_ids"] == ("TYPE_INT64", [-1])
    warm = qformer.model_warmup[0].inputs
    assert list(warm["image_embeds"].dims) == [17, 96]
    assert list(warm["qformer_input_ids"].dims) == [16]  # the config's own: the axis is dynamic

    assert tensors(read["visual_prompt"].input) == {
        "pixels": ("TYPE_UINT8", [-1, 48, 64, 3]),
        "qformer_input_ids": ("TYPE_INT64", [-1, -1]),
        "qformer_attention_mask": ("TYPE_INT64", [-1, -1]),
    }
    assert tensors(read["visual_prompt"].output) == {"visual_prompt": ("TYPE_FP32", [-1, 8, 128])}
    for name in ("instructblip", "instructblip_unary"):
        assert tensors(read[name].input) == {
            "pixels": ("TYPE_UINT8", [-1, 48, 64, 3]),
            "image": ("TYPE_STRING", [-1]),
            "prompt": ("TYPE_STRING", [1]),
        }


def test_policy_stays_the_operators(make_build):
    directory, manifest = make_build()
    read = configs(repository_from_engines(directory, manifest))

    vision = read["vision_encoder"]
    assert vision.response_cache.enable
    assert vision.HasField("dynamic_batching")
    assert read["qformer"].HasField("dynamic_batching")
    assert read["instructblip"].model_transaction_policy.decoupled
    assert not read["instructblip"].response_cache.enable
    assert read["instructblip_unary"].instance_group[0].count == 1


def test_an_ensemble_holds_nothing_that_triton_forbids_it(make_build):
    directory, manifest = make_build()
    ensemble = configs(repository_from_engines(directory, manifest))["visual_prompt"]
    assert not ensemble.instance_group
    assert not ensemble.model_warmup
    assert not ensemble.HasField("optimization")


def test_no_queue_is_limited_where_triton_2_51_would_then_stall(make_build):
    directory, manifest = make_build()
    for name, config in configs(repository_from_engines(directory, manifest)).items():
        assert not config.dynamic_batching.HasField("default_queue_policy"), name


def test_max_batch_size_is_always_written(make_build):
    directory, manifest = make_build()
    repository = repository_from_engines(directory, manifest)
    for name in repository.models:
        lines = (repository.path / name / "config.pbtxt").read_text().splitlines()
        assert [line for line in lines if line.startswith("max_batch_size:")], name


@pytest.mark.parametrize("instruction", [True, False])
def test_every_step_input_is_made_by_someone(make_build, instruction):
    directory, manifest = make_build(instruction=instruction)
    read = configs(repository_from_engines(directory, manifest))
    ensemble = read["visual_prompt"]
    steps = ensemble.ensemble_scheduling.step
    made = {tensor.name for tensor in ensemble.input}
    made |= {name for step in steps for name in step.output_map.values()}
    for step in steps:
        assert set(step.input_map.values()) <= made
        assert set(step.input_map) == {t.name for t in read[step.model_name].input}


def test_without_an_instruction_the_chain_takes_pixels_alone(make_build):
    directory, manifest = make_build(instruction=False)
    repository = repository_from_engines(directory, manifest)
    read = configs(repository)

    assert set(tensors(read["visual_prompt"].input)) == {"pixels"}
    assert set(tensors(read["qformer"].input)) == {"image_embeds"}
    assert set(read["qformer"].model_warmup[0].inputs) == {"image_embeds"}
    steps = {step.model_name: step for step in read["visual_prompt"].ensemble_scheduling.step}
    assert set(steps["qformer"].input_map) == {"image_embeds"}


def test_onnxruntime_runs_in_the_python_backend(make_build):
    directory, manifest = make_build()
    repository = repository_from_engines(directory, manifest)
    for name in ("vision_encoder", "qformer"):
        config = configs(repository)[name]
        assert (config.backend, config.platform) == ("python", "")
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
        ast.parse((repository.path / name / "1" / "model.py").read_text())


ON_GPUS = [name for name, kind in KINDS.items() if kind.gpu]


def with_language_model(manifest, kind):
    """The manifest, with a language model that no file stands for."""
    engine = EngineRecord(kind=kind, files={}, details={})
    record = ComponentRecord(precision="fp16", graphs={}, engine=engine)
    return replace(manifest, components={**manifest.components, "language_model": record})


@pytest.mark.parametrize("kind", ON_GPUS)
def test_python_models_of_engines_for_gpus_have_an_instance_on_each(make_build, kind):
    directory, manifest = make_build(kind=kind)
    read = configs(repository_from_engines(directory, manifest, backend="python"))
    for name in ("vision_encoder", "qformer"):
        (group,) = read[name].instance_group
        assert read[name].backend == "python"
        assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [])
    group = read["instructblip_unary"].instance_group[0]  # it has no engine
    assert group.kind == group.KIND_CPU


@pytest.mark.parametrize(
    ("kind", "on_gpu"), [("onnxruntime", False), ("onnxruntime-cuda", True), ("vllm", False)]
)
def test_the_language_model_has_one_instance_and_so_one_gpu(make_build, kind, on_gpu):
    directory, manifest = make_build()
    repository = repository_from_engines(directory, with_language_model(manifest, kind))
    (group,) = configs(repository)["instructblip"].instance_group
    assert group.kind == (group.KIND_GPU if on_gpu else group.KIND_CPU)
    assert (group.count, list(group.gpus)) == (1, [0] if on_gpu else [])


@pytest.mark.parametrize("alone", [True, False])
def test_gpus_that_the_operator_names_stay_where_there_is_an_engine_for_them(alone):
    config = model_config_pb2.ModelConfig()
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, gpus=[1, 3])
    place_instances(config, "onnxruntime-cuda", alone=alone)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [1, 3])
    place_instances(config, "onnxruntime", alone=alone)
    assert (group.kind, list(group.gpus)) == (group.KIND_CPU, [])


def test_tensorrt_runs_natively_from_a_linked_plan(make_build):
    directory, manifest = make_build(kind="tensorrt")
    repository = repository_from_engines(directory, manifest)
    for name in ("vision_encoder", "qformer"):
        config = configs(repository)[name]
        assert (config.backend, config.platform) == ("", "tensorrt_plan")
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert not (repository.path / name / "1" / "model.py").exists()


def test_a_build_can_be_moved_whole(make_build):
    directory, manifest = make_build(kind="tensorrt")
    repository_from_engines(directory, manifest)
    moved = directory.rename(directory.with_name("elsewhere"))

    plan = moved / "model_repository" / "qformer" / "1" / "model.plan"
    assert plan.read_bytes() == b"plan of qformer"
    config = read_config(moved / "model_repository" / "instructblip" / "config.pbtxt")
    model = moved / "model_repository" / "instructblip"
    assert (model / config.parameters["directory"].string_value).resolve() == moved.resolve()


def test_a_missing_plan_is_named(make_build):
    directory, manifest = make_build(kind="tensorrt")
    (directory / "engines" / "qformer" / "model.plan").unlink()
    with pytest.raises(ServingError, match=r"engine of qformer is missing: .*model\.plan"):
        repository_from_engines(directory, manifest)


def test_assembling_again_replaces_what_was_there(make_build):
    directory, manifest = make_build()
    repository = repository_from_engines(directory, manifest)
    (repository.path / "qformer" / "stale").write_text("old")
    repository_from_engines(directory, manifest)
    assert not (repository.path / "qformer" / "stale").exists()


def test_the_contract_for_clients_is_in_the_models_config(make_build):
    directory, manifest = make_build()
    read = configs(repository_from_engines(directory, manifest))["instructblip"].parameters
    parameters = {name: read[name].string_value for name in read}
    contract = ServerContract.from_parameters(parameters)
    assert contract.preprocessing == manifest.preprocessing
    assert contract.limits.max_instruction == 128
    assert contract.limits.max_length == 200
    assert contract.limits.images == 4
    assert (contract.limits.slots, contract.limits.queue) == (3, 17)
    assert contract.build.name == "small"


def test_the_language_model_is_told_its_limits(make_build):
    directory, manifest = make_build()
    parameters = configs(repository_from_engines(directory, manifest))["instructblip"].parameters
    told = ServerContract.from_manifest(manifest).to_parameters()
    written = {name: parameters[name].string_value for name in parameters.keys() - told.keys()}
    assert written == {
        "directory": "../..",
        "threads": "0",
        "slots": "3",
        "max_length": "200",
        "queue": "17",
        "prefix_cache": "true",
        "image_bytes": "16777216",
        "image_pixels": "89478485",
        "image_seconds": "10",
        "image_formats": "JPEG PNG WEBP GIF BMP TIFF",
        "image_workers": "0",
        "image_cache_mib": "64",
    }
    assert DecodingSettings.from_parameters(written) == DecodingSettings()


def test_a_damaged_config_is_named_with_its_line(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "x"\nmax_bath_size: 8\n')
    with pytest.raises(ServingError, match=r"config\.pbtxt is not a Triton model config: 2:1"):
        read_config(path)
