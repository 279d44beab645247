"""Prompts to ids: as transformers does it, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from iblip.engines.text.instructions import InstructionTokenizer, instruction_tensors, padded_length
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import load_tokenizer
from iblip.engines.types import PromptIds
from iblip.export.errors import BuildDirectoryError, InputError, OptionError

PROMPTS = ["What colour is the 3?", "  two  spaces ", "Ünïcode 🙂 你好", "a\nb\tc", "</s> hi <s>"]


@pytest.mark.parametrize("kind", ["llama", "t5", "opt"])
def test_ids_are_those_of_transformers(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizers[kind])
    prompts = PromptTokenizer(tokenizer=tokenizers[kind], limit=100)
    for prompt in PROMPTS:
        assert list(prompts(prompt).ids) == reference(prompt)["input_ids"]


def test_the_template_goes_around_the_prompt(tokenizers: dict[str, Tokenizer]) -> None:
    plain = PromptTokenizer(tokenizer=tokenizers["llama"], limit=100)
    wrapped = PromptTokenizer(
        tokenizer=tokenizers["llama"], limit=100, template="{image}Question: {prompt} Answer:"
    )
    assert wrapped("{x}?") == plain("Question: {x}? Answer:")


VICUNA = "Answer.###Human: <Img>{image}</Img> {prompt}###Assistant: "
LLAMA2 = "Answer.<s>[INST] <Img>{image}</Img> {prompt} [/INST] "


@pytest.mark.parametrize(
    ("template", "prompt", "images", "texts"),
    [
        ("{image}{prompt}", "is it?", 1, ["", "is it?"]),
        (VICUNA, "is it?", 1, ["Answer.###Human: <Img>", "</Img> is it?###Assistant: "]),
        (
            VICUNA,
            "is it?",
            2,
            [
                "Answer.###Human: <Img>",
                "</Img>###Human: <Img>",
                "</Img> is it?###Assistant: ",
            ],
        ),
        (
            LLAMA2,
            "is it?",
            2,
            ["Answer.<s>[INST] <Img>", "</Img><s>[INST] <Img>", "</Img> is it? [/INST] "],
        ),
        (
            VICUNA,
            "<Img><ImageHere></Img> is {image} or<ImageHere>",
            2,
            ["Answer.###Human: <Img>", "</Img> is {image} or", "###Assistant: "],
        ),
        (VICUNA, "<ImageHere>", 1, ["Answer.###Human: ", "###Assistant: "]),
    ],
)
def test_the_text_around_images_is_tokenised_piece_by_piece(
    template: str, prompt: str, images: int, texts: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers["llama"]
    prompts = PromptTokenizer(
        tokenizer=tokenizer, limit=500, template=template, images="places", most_images=2
    )
    found = prompts(prompt, images)
    pieces = [list(found.ids[piece]) for piece in found.pieces]
    first = next(index for index, text in enumerate(texts) if text)  # with the special tokens
    wanted = [
        tokenizer.encode(text, add_special_tokens=index == first).ids if text else []
        for index, text in enumerate(texts)
    ]
    assert pieces == wanted
    assert found.ids.count(1) == 1 + template.count("<s>") * images  # BOS


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("<ImageHere> and?", 2, "<ImageHere> once, and the request 2 images. Write it once per"),
        ("<ImageHere> <ImageHere>?", 1, "<ImageHere> 2 times, and the request 1 image. Write"),
        ("What?", 3, "the request has 3 images; expected 1 to 2"),
    ],
)
def test_marks_that_are_not_the_images_are_refused(
    prompt: str, images: int, message: str, tokenizers: dict[str, Tokenizer]
) -> None:
    prompts = PromptTokenizer(
        tokenizer=tokenizers["llama"], limit=500, template=VICUNA, images="places", most_images=2
    )
    with pytest.raises(InputError, match=message):
        prompts(prompt, images)


def test_frames_stand_one_after_another(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["t5"]
    prompts = PromptTokenizer(
        tokenizer=tokenizer, limit=40, queries=8, images="frames", most_images=4
    )
    found = prompts("<ImageHere>?", 3)  # a mark of another family's is text here
    assert found == PromptIds(tuple(tokenizer.encode("<ImageHere>?").ids), (0, 0, 0))
    with pytest.raises(InputError, match=r"tokens; at most 8 fit\. 4 images take the rest"):
        prompts("red blue left right 3 7 " * 2, 4)


@pytest.mark.parametrize("prompt", ["", " \t\n", "\N{NO-BREAK SPACE}"])
def test_an_empty_prompt_is_refused(prompt: str, tokenizers: dict[str, Tokenizer]) -> None:
    instructions = InstructionTokenizer(tokenizer=tokenizers["bert"], limit=64, pad_token_id=0)
    for call in (PromptTokenizer(tokenizer=tokenizers["t5"], limit=9), instructions):
        with pytest.raises(InputError, match="the prompt is empty"):
            call(prompt)


def test_a_prompt_may_be_empty_where_the_model_captions(tokenizers: dict[str, Tokenizer]) -> None:
    prompts = PromptTokenizer(tokenizer=tokenizers["opt"], limit=9, may_be_empty=True)
    assert prompts("") == PromptIds((2,))  # BOS alone
    with pytest.raises(InputError, match="the prompt is None"):
        prompts(None)  # type: ignore[arg-type]


def test_a_prompt_that_spells_the_image_token_is_refused(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["llama"]
    prompts = PromptTokenizer(
        tokenizer=tokenizer, limit=100, image_token_id=tokenizer.token_to_id("<image>")
    )
    with pytest.raises(InputError, match="contains the image token '<image>'"):
        prompts("what is<image>this")
    assert prompts("what is <an image>?")


def test_a_long_prompt_is_refused_with_found_and_limit(tokenizers: dict[str, Tokenizer]) -> None:
    prompts = PromptTokenizer(tokenizer=tokenizers["opt"], limit=10)
    ids = prompts("a b c d")
    assert len(ids.ids) <= 10
    with pytest.raises(InputError, match=r"the prompt has \d\d tokens; at most 10 fit"):
        prompts("zq " * 20)
    instructions = InstructionTokenizer(tokenizer=tokenizers["bert"], limit=8, pad_token_id=0)
    with pytest.raises(InputError, match=r"the instruction has \d+ tokens; at most 8 fit"):
        instructions("how many digits are there in the image?")


def test_instructions_are_padded_on_the_right_and_masked(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bert"]
    instructions = InstructionTokenizer(tokenizer=tokenizer, limit=100, pad_token_id=7)
    short, long = "Red?", "What is it? " * 6
    out = instructions(short, long)
    ids, mask = out["qformer_input_ids"], out["qformer_attention_mask"]
    assert ids.dtype == mask.dtype == np.int64
    for row, row_mask, prompt in zip(ids, mask, (short, long), strict=True):
        found = tokenizer.encode(prompt).ids
        assert row[row_mask == 1].tolist() == found
        assert row_mask[: len(found)].all()
        assert (row[row_mask == 0] == 7).all()


@pytest.mark.parametrize(
    ("length", "limit", "padded"),
    [(1, 100, 16), (16, 100, 16), (17, 100, 32), (65, 100, 100), (100, 100, 100), (3, 8, 8)],
)
def test_instructions_have_few_lengths(length: int, limit: int, padded: int) -> None:
    assert padded_length(length, limit) == padded


def test_truncation_and_padding_in_the_file_do_not_change_a_prompt(
    tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = Tokenizer.from_str(tokenizers["t5"].to_str())
    whole = tokenizer.encode("a long prompt, longer than four").ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(
        "a long prompt, longer than four"
    ).ids == (whole)


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BuildDirectoryError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(path)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("most", [3, 8, 12, 500])
def test_instructions_are_cut_as_transformers_cuts_them(
    side: str, most: int, tokenizers: dict[str, Tokenizer]
) -> None:
    instructions = InstructionTokenizer(tokenizer=tokenizers["bert"], limit=12, pad_token_id=0)
    reference = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizers["bert"].to_str()), truncation_side=side
    )
    prompt = "How many digits are there? What colour is the first, and what is the last?"
    out = instructions(prompt, "Red?", truncation=side, max_instruction=most)
    for row, mask, text in zip(*out.values(), (prompt, "Red?"), strict=True):
        wanted = reference(text, truncation=True, max_length=min(most, 12))["input_ids"]
        assert row[mask == 1].tolist() == wanted
    assert instructions(prompt, truncation=side)["qformer_input_ids"].shape == (1, 12)


def test_a_cut_that_leaves_no_text_is_refused(tokenizers: dict[str, Tokenizer]) -> None:
    instructions = InstructionTokenizer(tokenizer=tokenizers["bert"], limit=12, pad_token_id=0)
    with pytest.raises(OptionError, match="max_instruction is 2; the tokenizer adds 2 special"):
        instructions("Red?", truncation="left", max_instruction=2)
    with pytest.raises(OptionError, match="this model's Q-Former reads none"):
        instruction_tensors(None, "Red?", truncation="left")
