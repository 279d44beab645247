"""Tokenizers of synthetic checkpoints, as transformers and the server load them."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.synthesis.checkpoint import Synthesis, synthesize
from iblip.export.synthesis.tokenizers import fill_vocabulary

TEXT = "What digit is in the image? A red 7, top left."
ROWS = ["instructblip-vicuna-7b", "instructblip-flan-t5-xl", "blip2-opt-2.7b", "minigpt4-vicuna-7b"]


@pytest.mark.parametrize("name", ROWS)
def test_every_id_decodes_and_texts_are_tokenised_as_by_the_demo(name, small, tmp_path):
    model = small(name)
    synthesize(Synthesis(model=model), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    size = model.text["vocab_size"]
    assert len(tokenizer) == size
    assert all(tokenizer.convert_ids_to_tokens(range(size)))
    demo = AutoTokenizer.from_pretrained(DEMO.parent / model.demo)
    assert tokenizer.tokenize(TEXT) == demo.tokenize(TEXT)
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == demo.decode(demo(TEXT).input_ids)
    assert tokenizer.decode([size - 5, size - 6]).split() == [f"w{size - 5}", f"w{size - 6}"]


def test_the_instruction_is_tokenised_as_by_the_demo(small, tmp_path):
    model = small("instructblip-vicuna-7b")
    synthesize(Synthesis(model=model), tmp_path / "out")
    part = "qformer_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / part)
    demo = AutoTokenizer.from_pretrained(DEMO.parent / model.demo / part)
    assert len(tokenizer) == 30523
    assert tokenizer(TEXT).input_ids == demo(TEXT).input_ids


def test_a_line_break_ends_an_answer_of_opt(small, tmp_path):
    synthesize(Synthesis(model=small("blip2-opt-2.7b")), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("\n", add_special_tokens=False).input_ids == [50118]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 50118


def test_places_are_exchanged():
    words = {"a": 0, "b": 1, "c": 2}
    tokenizer = {
        "model": {"type": "BPE", "vocab": words, "merges": []},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": 3, "content": "<image>", "special": True}],
    }
    found = fill_vocabulary(tokenizer, 7, {"<image>": 6, "b": 0})
    assert found["model"]["vocab"] == {
        "b": 0,
        "a": 1,
        "c": 2,
        "Ġw00003": 3,
        "Ġw00004": 4,
        "Ġw00005": 5,
        "<image>": 6,
    }
    assert found["added_tokens"] == [{"id": 6, "content": "<image>", "special": True}]
    assert words == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(ValueError, match="has 4 tokens, expected at most 3"):
        fill_vocabulary(tokenizer, 3, {})


def test_what_is_written_is_read_without_transformers(small, tmp_path):
    synthesize(Synthesis(model=small("instructblip-vicuna-7b")), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.token_to_id("<image>") == 32000
    assert tokenizer.get_vocab_size() == 32001
