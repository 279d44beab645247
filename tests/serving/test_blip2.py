"""BLIP-2 on OPT, built as a user builds it: as InstructBLIP, with no instruction to read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from iblip.engines.pipeline import Pipeline
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import language_model_facts
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image
from iblip.export.verification.loading import load_model
from iblip.serving.client import GenerationOptions


@pytest.fixture
def example(checkpoints):
    return read_examples(checkpoints / "heldout")[0]


@pytest.fixture
def manifest(blip2_build):
    return Manifest.read(blip2_build)


def test_a_build_is_proven_graph_by_graph_and_by_its_answers(manifest):
    assert (manifest.family, manifest.language_model.architecture) == ("blip2", "opt")
    found = manifest.verification
    assert set(found["graphs"]) == {
        "vision_encoder/model",
        "qformer/model",
        "language_model/embed_tokens",
        "language_model/decoder",
        "language_model/batched_decoder",
    }
    assert all(figures["passed"] for figures in found["graphs"].values())
    assert found["text"]["same_text"] == found["text"]["examples"] == 24


def test_the_q_former_reads_no_instruction(blip2_build, manifest):
    contract = manifest.components["qformer"].graphs["model"].contract
    assert [spec.name for spec in contract.inputs] == ["image_embeds"]
    assert manifest.text.qformer_tokenizer is None
    assert not (blip2_build / "text" / "qformer_tokenizer.json").exists()
    models = {path.name for path in (blip2_build / "model_repository").iterdir()}
    assert models == {
        "vision_encoder",
        "qformer",
        "visual_prompt",
        "instructblip",
        "instructblip_unary",
    }


def test_a_prompt_has_the_ids_that_the_processor_gives_it(blip2_build, manifest, random_checkpoint):
    processor = checkpoint_from_directory(random_checkpoint("opt")).processor
    prompts = PromptTokenizer.from_build(blip2_build, manifest)
    for prompt in ("Question: how many digits? Answer:", "a photo of", " naïve 你好\n", "</s>x"):
        picture = Image.new("RGB", (24, 24))
        ids = processor(images=picture, text=prompt)["input_ids"][0]
        image = [manifest.language_model.image_token_id] * manifest.language_model.num_query_tokens
        assert prompts(prompt).fill(*image) == ids


def test_an_answer_ends_with_a_line_break(blip2_build, manifest, random_checkpoint, example):
    """As in the hub's BLIP-2 on OPT; the tokenizer's `</s>` begins a prompt and ends nothing."""
    source = random_checkpoint("opt")
    tokenizer = checkpoint_from_directory(source).processor.tokenizer
    (line_break,) = tokenizer("\n", add_special_tokens=False).input_ids
    assert manifest.language_model.eos_token_ids == (line_break,)
    assert tokenizer.eos_token_id == tokenizer("\n").input_ids[0] != line_break
    wanted = _said(source, example.image, example.prompt)
    assert wanted[-1] == line_break
    answer = _answer(blip2_build, manifest, example.image, example.prompt)
    assert (answer.finish_reason, list(answer.token_ids)) == ("eos", wanted[:-1])


def test_an_answer_ends_where_the_language_models_own_config_says(
    blip2_build, manifest, random_checkpoint, example, tmp_path
):
    copy = shutil.copytree(random_checkpoint("opt"), tmp_path / "copy")
    end = _said(copy, example.image, "")[2]
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (copy / "config.json").write_text(json.dumps(config))
    wanted = _said(copy, example.image, "")
    assert wanted[-1] == end
    facts = language_model_facts(checkpoint_from_directory(copy))
    answer = _answer(blip2_build, replace(manifest, language_model=facts), example.image, "")
    assert (answer.finish_reason, list(answer.token_ids)) == ("eos", wanted[:-1])


def test_an_image_of_which_nothing_is_asked_is_captioned(
    blip2_build, manifest, random_checkpoint, example
):
    wanted = _said(random_checkpoint("opt"), example.image, None)
    assert len(wanted) == 20
    assert list(_answer(blip2_build, manifest, example.image, "").token_ids) == wanted


def _answer(directory, manifest, image, prompt):
    with Pipeline(directory, manifest=manifest) as pipeline:
        pixels = pixels_from_image(image, manifest.preprocessing)
        return pipeline.answer(pixels, prompt, GenerationOptions(max_new_tokens=20))


def _said(directory, image, prompt):
    """transformers' greedy tokens, with nothing said of what ends them."""
    checkpoint = checkpoint_from_directory(directory)
    processor = checkpoint.processor
    inputs = processor(images=Image.open(image), text=prompt, return_tensors="pt")
    ids = load_model(checkpoint).generate(**inputs, do_sample=False, max_new_tokens=20)
    asked = processor.num_query_tokens + len(processor.tokenizer(prompt or "").input_ids)
    return ids[0, asked:].tolist()
