"""A whole build in this process, against transformers; and what opens its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import iblip
from iblip.engines.language_model.opening import ENGINES, EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer
from iblip.engines.pipeline import Pipeline
from iblip.engines.runners import OPENERS, open_runner
from iblip.export.artifact.manifest import Manifest, ServingLimits
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import (
    BuildDirectoryError,
    ContractError,
    EngineError,
    InputError,
    OptionError,
)
from iblip.export.verification.loading import load_model
from tests.cases import exhaustive

Build = Callable[..., Path]
PROMPTS = ("What colour is the 3?", "How many digits are there?", "naïve 你好")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@pytest.fixture(params=["llama", "t5", "opt"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipeline(kind: str, random_build: Build) -> Iterator[Pipeline]:
    with Pipeline(random_build(kind), threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    "kind",
    ["llama", "t5", "opt", "qwen2", "gpt-neox", *map(exhaustive, ("mistral", "mt5"))],
    indirect=True,
)
def test_answers_are_those_of_transformers(
    kind: str, pipeline: Pipeline, random_checkpoint: Build
) -> None:
    checkpoint = checkpoint_from_directory(random_checkpoint(kind))
    model, processor = load_model(checkpoint), checkpoint.processor
    facts = pipeline.manifest.language_model
    for seed, prompt in enumerate(PROMPTS):
        image = Image.fromarray(picture(seed))
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        ids = ids[0] if facts.is_encoder_decoder else ids[0, inputs["input_ids"].shape[1] :]
        ids = [token for token in ids.tolist() if token not in facts.eos_token_ids]
        answer = pipeline.answer(picture(seed), prompt, GenerationOptions(max_new_tokens=16))
        assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_each_row_of_a_batch_is_what_it_is_alone(pipeline: Pipeline) -> None:
    pixels = np.stack([picture(seed) for seed in range(3)])
    embeds = pipeline.encode_image(pixels)
    together = pipeline.visual_prompt(embeds, PROMPTS)
    assert together.shape == (3, 4, 32)
    for i, prompt in enumerate(PROMPTS):
        alone = pipeline.visual_prompt(pipeline.encode_image(pixels[[i]]), [prompt])
        assert np.abs(together[i] - alone[0]).max() < 1e-4
    others = pipeline.visual_prompt(embeds, PROMPTS[::-1])
    reads_instruction = pipeline.manifest.text.qformer_tokenizer is not None
    assert (np.abs(together - others).max() > 1e-2) == reads_instruction


def test_many_questions_about_one_image_encode_it_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bytes] = []
    encode = pipeline.encode_image

    def counted(pixels: np.ndarray) -> Any:
        encoded.append(pixels.tobytes())
        return encode(pixels)

    monkeypatch.setattr(pipeline, "encode_image", counted)
    one = GenerationOptions(max_new_tokens=1)
    for prompt in PROMPTS:
        pipeline.answer(picture(0), prompt, one)
    assert len(encoded) == 1
    pipeline.answer(picture(1), PROMPTS[0], one)
    assert len(encoded) == 2


def test_an_answer_streams(pipeline: Pipeline) -> None:
    options = GenerationOptions(max_new_tokens=8, min_new_tokens=8)
    *deltas, answer = pipeline.submit(picture(0), PROMPTS[0], options)
    assert isinstance(answer, Answer)
    assert "".join(delta.text for delta in deltas) == answer.text
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("kind", ["llama", "t5"], indirect=True)
@pytest.mark.parametrize(
    ("pixels", "prompt", "error", "message"),
    [
        (picture(0), " ", InputError, "prompt is empty"),
        (picture(0), "What is <image>?", InputError, "image token"),
        (picture(0), "red " * 60, InputError, r"the instruction has \d+ tokens; at most 40"),
        (picture(0)[:12], "What?", ContractError, r"\[1, 12, 24, 3\], expected pixels uint8"),
        (picture(0).astype(np.float32), "What?", ContractError, "float32, expected uint8"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    pipeline: Pipeline, pixels: np.ndarray, prompt: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipeline.answer(pixels, prompt)
    with pytest.raises(InputError, match="2 images and 1 prompts"):
        pipeline.visual_prompt(pipeline.encode_image(np.stack([picture(0)] * 2)), ["What?"])


def test_an_image_is_pixels_or_what_a_client_takes(random_build: Build, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    resized = np.asarray(Image.open(tmp_path / "large.png").resize((24, 24), Image.BICUBIC))
    options = GenerationOptions(max_new_tokens=6, min_new_tokens=6)
    with Pipeline(str(random_build("llama")), threads=1) as pipeline:
        expected = pipeline.answer(resized, "What?", options)
        path = tmp_path / "large.png"
        for image in (path, str(path), path.read_bytes(), Image.open(path), [path], [large]):
            assert pipeline.answer(image, "What?", options).token_ids == expected.token_ids
        several = pipeline.answer([path, Image.open(path)], "What?", options)
        assert several.prompt_tokens == expected.prompt_tokens + 4  # queries of an image
        with pytest.raises(InputError, match="there is no file"):
            pipeline.answer("a.png", "What?")


def test_what_is_not_a_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildDirectoryError, match="is not a build"):
        Pipeline(tmp_path)
    with pytest.raises(BuildDirectoryError, match="there is no directory"):
        Pipeline(tmp_path / "nowhere")


def _changed(build: Path, directory: Path, change: Callable[[dict[str, Any]], None]) -> Manifest:
    data = json.loads((build / "manifest.json").read_text())
    change(data["components"])
    (directory / "manifest.json").write_text(json.dumps(data))
    return Manifest.read(directory)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_that_cannot_run_here_says_what_to_do(
    engine: str, random_build: Build, tmp_path: Path
) -> None:
    def change(components: dict[str, Any]) -> None:
        files = {"model": "engines/qformer/model.plan"}
        components["qformer"]["engine"] = {"kind": engine, "files": files, "details": {}}

    manifest = _changed(random_build("llama"), tmp_path, change)
    runner = open_runner(tmp_path, manifest, "qformer")
    message = r"Run `pip install [^`]*\[|which tensorrt-rtx built .*model\.plan\. Build it again"
    with pytest.raises(EngineError, match=message):
        runner.__enter__()


def test_parts_that_are_not_there_are_named(random_build: Build, tmp_path: Path) -> None:
    def change(components: dict[str, Any]) -> None:
        components["qformer"]["engine"]["kind"] = "openvino"

    build = random_build("llama")
    manifest = _changed(build, tmp_path, change)
    with pytest.raises(EngineError, match="for the engine 'openvino'; this version runs onnxrun"):
        open_runner(tmp_path, manifest, "qformer")
    with pytest.raises(BuildDirectoryError, match="no component 'audio'; it has vision_encoder"):
        open_runner(build, manifest, "audio")
    with pytest.raises(BuildDirectoryError, match="no graph 'encoder'; it has model"):
        open_runner(build, manifest, "qformer", "encoder")
    runner = open_runner(tmp_path, manifest, "vision_encoder")
    with pytest.raises(EngineError, match="there is no graph"):
        runner.__enter__()


def test_the_builds_limits_are_the_engines(random_build: Build) -> None:
    build = random_build("llama")
    manifest = Manifest.read(build)
    queries, own = manifest.language_model.num_query_tokens, manifest.language_model.max_length
    limits = ServingLimits(slots=2, max_length=queries + 12, queue=1, images=1)
    with Pipeline(build, threads=1, manifest=replace(manifest, limits=limits)) as small:
        with pytest.raises(OptionError, match=r"n is 3; this engine has 2 slots.*`--slots` of"):
            small.answer(picture(0), "red", GenerationOptions(n=3, temperature=1.0))
        with pytest.raises(InputError) as caught:
            small.answer(picture(0), "red " * 12)
        assert "at most 11 fit. max_length is " in str(caught.value)
        assert f"of the model's {own}" in str(caught.value)
        assert "`--max-length` of `iblip build` or `max_length` in" in str(caught.value)
        most = GenerationOptions(min_new_tokens=2, max_new_tokens=1000)
        answer = small.answer(picture(0), "red", most)
    assert answer.prompt_tokens + answer.completion_tokens <= limits.max_length


def test_more_positions_than_the_model_has_are_refused(random_build: Build) -> None:
    build = random_build("llama")
    manifest = Manifest.read(build)
    most = manifest.language_model.max_length
    message = f"max_length is {most + 1}; this model has {most} positions"
    with pytest.raises(OptionError, match=message):
        open_engine(build, manifest, limits=EngineLimits(positions=most + 1))


def test_the_time_of_the_picture_is_told(pipeline: Pipeline) -> None:
    first = pipeline.answer(picture(9), "red").timing
    again = pipeline.answer(picture(9), "red").timing
    assert first.vision_s > 0
    assert again.vision_s > 0  # found encoded, it still passes the Q-Former


@pytest.mark.parametrize("threads", [-1, 0, 1025, 100_000])
def test_threads_out_of_range_are_refused_for_every_kind_of_engine(
    random_build: Build, threads: int
) -> None:
    build = random_build("llama")
    manifest = Manifest.read(build)
    opened: dict[str, tuple[Any, Any]] = {
        "vision_encoder": (OPENERS, partial(open_runner, component="vision_encoder")),
        "language_model": (ENGINES, open_engine),
    }
    for name, (kinds, open_it) in opened.items():
        record = manifest.components[name]
        for kind in kinds:
            other = replace(record, engine=replace(record.engine, kind=kind))
            changed = replace(manifest, components={**manifest.components, name: other})
            with pytest.raises(OptionError, match=f"threads is {threads}; expected 1 to 1024"):
                open_it(build, changed, threads=threads)
    with pytest.raises(OptionError, match=f"threads is {threads}; expected 1 to 1024"):
        iblip.load(build, threads=threads)
