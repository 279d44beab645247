"""The committed checkpoints: they load offline, their parts agree, and they answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the export extra")
transformers = pytest.importorskip("transformers", reason="needs the export extra")

from checkpoints.training.evaluation import Answerer, read_items  # noqa: E402

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
NAMES = ("instructblip-demo-vicuna", "instructblip-demo-flant5")


@pytest.fixture(scope="module", autouse=True)
def _offline() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", params=NAMES)
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = CHECKPOINTS / request.param
    return path


@pytest.fixture(scope="module")
def answerer(directory: Path) -> Answerer:
    return Answerer(directory)


def read(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_weights_are_float32_and_every_one_is_in_the_file(answerer: Answerer) -> None:
    assert {parameter.dtype for parameter in answerer.model.parameters()} == {torch.float32}
    assert not any(parameter.is_meta for parameter in answerer.model.parameters())


def test_the_parts_are_shaped_as_the_originals_are(answerer: Answerer) -> None:
    config = answerer.model.config
    assert config.vision_config.layer_norm_eps == 1e-6
    assert config.vision_config.hidden_act == "gelu"
    assert answerer.model.vision_model.encoder.layers[0].self_attn.qkv.bias is not None
    assert config.qformer_config.layer_norm_eps == 1e-12
    assert config.qformer_config.cross_attention_frequency == 2
    assert config.qformer_config.max_position_embeddings >= 128


def test_queries_differ(answerer: Answerer) -> None:
    queries = answerer.model.query_tokens[0]
    assert torch.pdist(queries).min() > 0.1


def test_the_processor_makes_what_the_model_reads(answerer: Answerer) -> None:
    config, size = answerer.model.config, answerer.model.config.vision_config.image_size
    image = Image.fromarray(np.zeros((96, 128, 3), np.uint8))
    inputs = answerer.processor(images=image, text="Where is the 3?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, size, size)
    placeholders = inputs["input_ids"] == config.image_token_index
    assert placeholders.sum() == config.num_query_tokens == answerer.processor.num_query_tokens
    assert placeholders[0, : config.num_query_tokens].all()


def test_the_processor_normalises_as_clip_does(answerer: Answerer) -> None:
    image = Image.fromarray(np.full((72, 72, 3), 255, np.uint8))
    pixels = answerer.processor(images=image, text="?", return_tensors="pt")["pixel_values"]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    wanted = torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)])
    torch.testing.assert_close(pixels[0, :, 0, 0], wanted, atol=1e-5, rtol=0)


def test_everyone_agrees_on_the_end_of_a_sequence(directory: Path, answerer: Answerer) -> None:
    wanted = answerer.processor.tokenizer.eos_token_id
    assert answerer.model.config.text_config.eos_token_id == wanted
    assert answerer.model.language_model.generation_config.eos_token_id == wanted
    assert read(directory / "generation_config.json")["eos_token_id"] == wanted


def test_special_tokens_are_one_token_each(answerer: Answerer) -> None:
    tokenizer, config = answerer.processor.tokenizer, answerer.model.config
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_index
    assert len(tokenizer) <= config.text_config.vocab_size
    assert len(answerer.processor.qformer_tokenizer) <= config.qformer_config.vocab_size


def test_llama_gives_any_text_back() -> None:
    path = CHECKPOINTS / NAMES[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    choose = random.Random(0)
    ranges = [(0x20, 0x7F), (0xA0, 0x2580), (0x2582, 0xD800), (0xE000, 0x110000)]
    for _ in range(300):
        text = "x" + "".join(chr(choose.randrange(*choose.choice(ranges))) for _ in range(12))
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_flan_t5_has_an_output_layer_of_its_own() -> None:
    path = CHECKPOINTS / NAMES[1]
    assert read(path / "config.json")["text_config"]["tie_word_embeddings"] is False  # type: ignore[index]
    language = Answerer(path).model.language_model
    assert not torch.equal(language.lm_head.weight, language.shared.weight)
    assert language.config.scale_decoder_outputs is False


def test_held_out_questions_are_answered(directory: Path, answerer: Answerer) -> None:
    items = read_items(directory / "examples")[:40]
    right = [said == i.answer for i, said in zip(items, answerer.answer(items), strict=True)]
    assert sum(right) >= 34


def test_the_picture_and_the_question_both_matter(directory: Path, answerer: Answerer) -> None:
    items = [item for item in read_items(directory / "examples") if item.kind == "describe"][:8]
    assert len(set(answerer.answer(items))) == len({item.answer for item in items})


def test_an_answer_ends_by_itself(directory: Path, answerer: Answerer) -> None:
    item = read_items(directory / "examples")[12]  # a description, the longest kind
    said = answerer.answer([item])[0]
    assert said.endswith(".")
    assert said.count(".") == 1
