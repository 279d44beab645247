"""The committed checkpoints: they load offline, their parts agree, and they answer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the export extra")
transformers = pytest.importorskip("transformers", reason="needs the export extra")

from safetensors.torch import load_file  # noqa: E402

from checkpoints.training.answering import Answerer, Item, answerer_of  # noqa: E402
from checkpoints.training.evaluation import read_items  # noqa: E402
from checkpoints.training.recipes import RECIPES  # noqa: E402

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
VICUNA, FLANT5 = "instructblip-demo-vicuna", "instructblip-demo-flant5"
OPT, BLIP2_FLANT5 = "blip2-demo-opt", "blip2-demo-flant5"
MINIGPT4, LLAMA2 = "minigpt4-demo", "minigpt4-demo-llama2"
NAMES = (VICUNA, FLANT5, OPT, BLIP2_FLANT5, MINIGPT4, LLAMA2)
DIRECTORIES = {recipe.directory: recipe for recipe in RECIPES.values()}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", params=NAMES)
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = CHECKPOINTS / request.param
    return path


@pytest.fixture(scope="module")
def answerer(directory: Path) -> Any:
    return answerer_of(directory)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def of(*names: str) -> pytest.MarkDecorator:
    """Ask only these checkpoints."""
    return pytest.mark.parametrize("directory", names, indirect=True, scope="module")


def test_every_weight_is_in_the_file_in_its_recipe_s_type(directory: Path, answerer: Any) -> None:
    wanted = str(DIRECTORIES[directory.name].dtype).removeprefix("torch.")
    assert read(directory / "config.json")["dtype"] == wanted
    stored = {}
    for path in directory.glob("*.safetensors"):
        stored |= load_file(path)
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{wanted}"}
    own = answerer.model.state_dict()
    tied = {"language_model.lm_head.weight"} if directory.name == OPT else set()
    shared = {name for name in own if name.endswith("coder.embed_tokens.weight")}
    assert own.keys() - stored.keys() <= tied | shared
    assert stored.keys() <= own.keys()


def test_weights_are_loaded_as_float32(answerer: Any) -> None:
    assert {parameter.dtype for parameter in answerer.model.parameters()} == {torch.float32}
    assert not any(parameter.is_meta for parameter in answerer.model.parameters())


def test_the_parts_are_shaped_as_the_originals_are(directory: Path, answerer: Any) -> None:
    config = read(directory / "config.json")
    assert config["vision_config"]["layer_norm_eps"] == 1e-6
    assert config["vision_config"]["hidden_act"] == "gelu"
    assert answerer.model.vision_model.encoder.layers[0].self_attn.qkv.bias is not None
    if config["qformer_config"]:
        assert config["qformer_config"]["layer_norm_eps"] == 1e-12
        assert config["qformer_config"]["cross_attention_frequency"] == 2
        assert config["qformer_config"]["max_position_embeddings"] >= 128


@of(VICUNA, FLANT5, OPT, BLIP2_FLANT5, MINIGPT4)
def test_queries_differ(answerer: Any) -> None:
    queries = answerer.model.query_tokens[0]
    assert torch.pdist(queries).min() > 0.1


@of(VICUNA, FLANT5, OPT, BLIP2_FLANT5)
def test_the_processor_makes_what_the_model_reads(answerer: Any) -> None:
    config, size = answerer.model.config, answerer.model.config.vision_config.image_size
    image = Image.fromarray(np.zeros((96, 128, 3), np.uint8))
    inputs = answerer.processor(images=image, text="Where is the 3?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, size, size)
    placeholders = inputs["input_ids"] == config.image_token_index
    assert placeholders.sum() == config.num_query_tokens == answerer.processor.num_query_tokens
    assert placeholders[0, : config.num_query_tokens].all()


def test_images_are_normalised_as_clip_does(directory: Path) -> None:
    processor = transformers.BlipImageProcessorPil.from_pretrained(directory)
    image = Image.fromarray(np.full((72, 72, 3), 255, np.uint8))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    wanted = torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)])
    torch.testing.assert_close(pixels[0, :, 0, 0], wanted, atol=1e-5, rtol=0)


def test_everyone_agrees_on_the_end_of_a_sequence(directory: Path, answerer: Any) -> None:
    wanted = answerer.tokenizer.eos_token_id
    if directory.name == OPT:  # as BLIP-2 on OPT ends its answers, unlike OPT itself
        wanted = answerer.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    assert read(directory / "config.json")["text_config"]["eos_token_id"] == wanted
    assert answerer.model.language_model.config.eos_token_id == wanted
    assert answerer.model.language_model.generation_config.eos_token_id == wanted
    assert read(directory / "generation_config.json")["eos_token_id"] == wanted


def test_special_tokens_are_one_token_each(directory: Path, answerer: Any) -> None:
    tokenizer, config = answerer.tokenizer, read(directory / "config.json")
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert config.get("image_token_index", image) == image != tokenizer.unk_token_id
    assert len(tokenizer) <= config["text_config"]["vocab_size"]


@of(VICUNA, FLANT5)
def test_the_qformer_s_tokens_are_in_its_vocabulary(answerer: Any) -> None:
    config = answerer.model.config.qformer_config
    assert len(answerer.processor.qformer_tokenizer) <= config.vocab_size


@pytest.mark.parametrize("name", [VICUNA, OPT, MINIGPT4])
def test_a_decoder_s_tokenizer_gives_any_text_back(name: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    choose = random.Random(0)
    ranges = [(0x20, 0x7F), (0xA0, 0x2580), (0x2582, 0xD800), (0xE000, 0x110000)]
    for _ in range(300):
        text = "x" + "".join(chr(choose.randrange(*choose.choice(ranges))) for _ in range(12))
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_opt_s_special_tokens_are_where_opt_has_them() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINTS / OPT)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    assert tokenizer("").input_ids == [2]


@of(OPT)
def test_opt_is_opt_s_way(answerer: Any) -> None:
    language = answerer.model.language_model
    assert language.lm_head.weight is language.model.decoder.embed_tokens.weight
    assert language.config.do_layer_norm_before
    positions = language.config.max_position_embeddings
    assert len(language.model.decoder.embed_positions.weight) == positions + 2


@of(FLANT5, BLIP2_FLANT5)
def test_flan_t5_has_an_output_layer_of_its_own(directory: Path, answerer: Any) -> None:
    assert read(directory / "config.json")["text_config"]["tie_word_embeddings"] is False
    language = answerer.model.language_model
    assert not torch.equal(language.lm_head.weight, language.shared.weight)
    assert language.config.scale_decoder_outputs is False


@of(OPT, BLIP2_FLANT5)
def test_blip2_s_qformer_reads_no_text(answerer: Any) -> None:
    assert answerer.model.config.qformer_config.use_qformer_text_input is False
    names = answerer.model.qformer.state_dict()
    assert not [name for name in names if "word_embeddings" in name or ".intermediate." in name]


@pytest.mark.parametrize("name", [MINIGPT4, LLAMA2])
def test_minigpt4_has_the_other_demo_s_tokenizer(name: str) -> None:
    own, other = (read(CHECKPOINTS / n / "tokenizer.json") for n in (name, VICUNA))
    assert own == other


def test_patches_are_merged_only_where_there_is_no_qformer() -> None:
    with_qformer, without = (read(CHECKPOINTS / n / "config.json") for n in (MINIGPT4, LLAMA2))
    assert with_qformer["merged_patches"] is None
    assert without["qformer_config"] is None
    vision = without["vision_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    assert without["num_query_tokens"] * without["merged_patches"] == patches


def test_the_examples_have_the_recipe_s_wording(directory: Path) -> None:
    recipe = DIRECTORIES[directory.name]
    plain = read_items(CHECKPOINTS / "heldout")
    for own, other in zip(read_items(directory / "examples"), plain, strict=True):
        assert own.image.samefile(other.image)
        assert (own.name, own.kind, own.answer) == (other.name, other.kind, other.answer)
        question = own.kind not in ("describe", "detail")
        wording = recipe.form.question if question else "{question}"
        assert own.prompt == wording.format(question=other.prompt)


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


@of(OPT, BLIP2_FLANT5)
def test_an_empty_prompt_captions(directory: Path, answerer: Answerer) -> None:
    items = [item for item in read_items(directory / "examples") if item.kind == "describe"][:10]
    asked = [Item(item.name, item.image, item.kind, "", brief(item.answer)) for item in items]
    right = [said == i.answer for i, said in zip(asked, answerer.answer(asked), strict=True)]
    assert sum(right) >= 6


def brief(answer: str) -> str:
    """A short description in any wording, as a caption."""
    words = answer.removeprefix("The image shows ").removesuffix(".")
    return words[0].lower() + words[1:]


def test_the_card_counts_its_parameters(directory: Path, answerer: Any) -> None:
    sizes = card(directory).split("## Sizes")[1].split("## How")[0]
    rows = re.findall(r"^\| (.+?) \| .* \| ([\d,]+) \|$", sizes, re.MULTILINE)
    stated = {part: int(number.replace(",", "")) for part, number in rows}
    model = answerer.model
    parts: Mapping[str, list[Any]] = {
        "vision encoder": [model.vision_model],
        "projection": [model.language_projection],
        "language model": [model.language_model],
        "**all**": [model],
    }
    counted = {part: sum(count(module) for module in modules) for part, modules in parts.items()}
    if hasattr(model, "qformer"):
        counted["Q-Former"] = count(model.qformer) + model.query_tokens.numel()
    assert stated == counted


def test_the_card_s_figures_add_up(directory: Path) -> None:
    rows = re.findall(r"^\| ([a-z_*]+) \| (\d+) \| ([\d.]+)% \|", card(directory), re.MULTILINE)
    *kinds, (_, everything, share) = rows
    asked = {kind: int(number) for kind, number, _ in kinds}
    right = sum(round(int(number) * float(percent) / 100) for _, number, percent in kinds)
    items = read_items(directory / "examples")
    assert asked == {kind: sum(i.kind == kind for i in items) for kind in asked}
    assert int(everything) == sum(asked.values()) == len(items)
    assert f"{right / len(items):.1%}" == f"{share}%"


def card(directory: Path) -> str:
    return (directory / "README.md").read_text(encoding="utf-8")


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
