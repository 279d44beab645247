"""Checkpoints with a quantised language model: they are built, adapted, and served as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.hub import directory_from_hub
from iblip.export.checkpoint.language_model_directory import write_language_model
from iblip.export.checkpoint.source import ModelSource, adapters_from_words
from iblip.export.dequantisation.methods import methods_of
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image
from iblip.export.models.table import MODELS
from iblip.export.opening import checkpoint_from_source
from iblip.export.originals.configs import config_of
from iblip.export.progress import Silent
from iblip.export.verification.choosing import choose_reference
from iblip.export.verification.loading import load_model
from iblip.export.verification.reference import answers
from iblip.export.verification.references import reference_of
from iblip.export.weights.casts import tensor_from_array
from iblip.export.weights.merging import Merged
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries
from tests.export.checkpoint.test_hub import Hub, serving
from tests.export.dequantisation.conftest import FILES

Write = Callable[[str], Path]

Q = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def plain(tmp_path: Path) -> Callable[[Path], Path]:
    """`plain(directory)`: the same checkpoint in floats, which transformers reads by itself."""

    def write(directory: Path) -> Path:
        copy = tmp_path / "plain"
        copy.mkdir()
        for file in directory.iterdir():
            if file.name not in ("model.safetensors", "config.json"):
                (copy / file.name).symlink_to(file)
        config = json.loads((directory / "config.json").read_text())
        del config["quantization_config"]
        (copy / "config.json").write_text(json.dumps(config))
        tensors = {
            name: tensor_from_array(tensor.read()).clone()
            for name, tensor in checkpoint_from_directory(directory).tensors.items()
        }
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        return copy

    return write


@pytest.mark.parametrize("name", ["bitsandbytes-nf4-double", "awq"])
def test_a_build_answers_as_transformers_does_on_its_floats(
    name: str,
    quantised_checkpoint: Write,
    plain: Callable[[Path], Path],
    tmp_path: Path,
    checkpoints: Path,
) -> None:
    quiet_libraries()
    directory = quantised_checkpoint(name)
    source = ModelSource(model=str(directory))
    found = build(BuildOptions(source=source, output=tmp_path / "build", precision="fp32"))
    manifest = Manifest.read(found)
    assert manifest.verification  # it would not have been put in place if it had failed

    questions = read_examples(checkpoints / "heldout", 6)
    reference = reference_of(checkpoint_from_directory(plain(directory)))
    images, prompts = zip(*((q.image, q.prompt) for q in questions), strict=True)
    expected = [""] * len(questions)
    for batch, texts in answers(reference, images, prompts, max_new_tokens=12):
        for index, answer in zip(batch, texts, strict=True):
            expected[index] = answer.text
    assert len(set(expected)) > 1
    with Pipeline(found) as pipeline:
        for question, text in zip(questions, expected, strict=True):
            pixels = pixels_from_image(question.image, manifest.preprocessing)
            options = GenerationOptions(max_new_tokens=12)
            assert pipeline.answer(pixels, question.prompt, options).text == text


def test_the_reference_runs_the_floats_and_says_so(
    quantised_checkpoint: Write, plain: Callable[[Path], Path]
) -> None:
    directory = quantised_checkpoint("bitsandbytes-int8")
    checkpoint = checkpoint_from_directory(directory)
    said = "6 weights are quantised (bitsandbytes, 8 bits), and dequantised by this project's own"
    assert said in choose_reference(checkpoint).reason
    own = load_model(checkpoint).state_dict()
    theirs = load_model(checkpoint_from_directory(plain(directory))).state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert checkpoint.tensors[Q].dtype == "float32"


def test_an_adapter_is_merged_into_the_floats(
    quantised_checkpoint: Write, random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = random_checkpoint("quantisable")
    model = get_peft_model(
        load_model(checkpoint_from_directory(base)),
        LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    (layer,) = (m for n, m in model.named_modules() if n.endswith("layers.0.self_attn.q_proj"))

    notes: list[str] = []

    class Noted(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    directory = quantised_checkpoint("gptq-4")
    source = ModelSource(model=str(directory), adapters=adapters_from_words([tmp_path / "adapter"]))
    checkpoint = checkpoint_from_source(source, Noted())
    assert "7 weights are quantised (GPTQ, 4 bits)" in notes[0]
    weight, bare = checkpoint.tensors[Q], checkpoint_from_directory(directory).tensors[Q]
    assert isinstance(weight, Merged)
    assert set(bare.sources) < set(weight.sources)
    expected = bare.read().astype(np.float32) + layer.get_delta_weight("default").detach().numpy()
    np.testing.assert_allclose(weight.read(), expected, rtol=1e-5, atol=1e-6)


def test_the_language_model_alone_is_written_in_floats(
    quantised_checkpoint: Write, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = checkpoint_from_directory(quantised_checkpoint("gptq_v2-3"))
    config, _ = write_language_model(checkpoint, tmp_path / "lm", "float16", Silent())
    assert "quantization_config" not in json.loads(config.read_text())
    alone: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.float16)
    weight = alone.state_dict()[Q.removeprefix("language_model.")]
    np.testing.assert_array_equal(weight.numpy(), checkpoint.tensors[Q].read())


def test_a_part_of_an_original_may_be_quantised() -> None:
    config = config_of(MODELS["instructblip-vicuna-7b"], FILES / "awq")
    assert config.text_config.intermediate_size == 64
    assert not hasattr(config.text_config, "quantization_config")


def test_a_dry_run_of_the_hub_needs_headers_alone(
    quantised_checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = quantised_checkpoint("bitsandbytes-nf4-double")
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    with serving(Hub(files=files)) as hub:
        download = partial(directory_from_hub, endpoint=hub.url, cache=tmp_path / "cache")
        monkeypatch.setattr("iblip.export.checkpoint.hub.directory_from_hub", download)
        source = ModelSource(model=hub.model)
        found = checkpoint_from_source(source, Silent(), weights=False).tensors
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    expected = checkpoint_from_directory(directory).tensors
    assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert methods_of(found.values()) == "7 weights are quantised (bitsandbytes, nf4)"
