"""Prompts are read, and answers written, as by the originals' own versions of transformers.

The expected ids are sentencepiece's. Around it stands what the slow `LlamaTokenizer` of
transformers 4.30 and 4.33 does with special tokens, written here from its description: a text is
cut at the special tokens, a token takes the white space beside it or leaves it, and each piece of
text is encoded by itself, with a space put in front.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from iblip.engines.language_model.detokenise import Detokeniser
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import answers_from_text, load_tokenizer
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import language_model_facts, write_tokenizers
from iblip.export.originals.reading import checkpoint_from_original

SPACE = "▁"
VICUNA = "blip2_vicuna_instruct/vicuna7b"

PROMPTS = (
    "What is in the image?",
    "  Look: what is it?",
    " What?",
    "Answer in a word:  ",
    "Short answer: ",
    "a  list   of things",
    "Что здесь? 这是什么 — この絵は 🙂👍🏽 naïve café",
    "one\ntwo\n\n three\ttabs",
    "It ends </s> here",
    "</s>",
    " </s> first",
    "last </s> ",
    "two </s> </s>  together",
    "close</s>up",
    "Unknown <unk> and <s> begins",
    "[INST] a list [/INST] of <0x0A> bytes",
)
PIECES = [" ", "  ", "\n", "</s>", "<s>", "<unk>", "word", " word ", "你", "é", "🙂", "x", "."]
PROMPTS_AT_RANDOM = tuple(
    "".join(random.Random(seed).choices(PIECES, k=1 + seed % 7)) for seed in range(150)
)
ALL = tuple(text for text in (*PROMPTS, *PROMPTS_AT_RANDOM) if text.strip())


@dataclass
class Slow:
    """The slow tokenizer: a sentencepiece model, and special tokens around it.

    `strips` has the tokens that take the white space beside them. Without `legacy`, only the
    beginning of a text gets a space in front, unless a token of `drops` begins it.
    """

    model: Path
    special: Mapping[str, int]
    strips: Sequence[str]
    legacy: bool = True
    drops: Sequence[str] = ()

    def ids(self, text: str) -> list[int]:
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model.read_bytes())
        proto.normalizer_spec.add_dummy_prefix = self.legacy
        pieces = SentencePieceProcessor(model_proto=proto.SerializeToString())
        if not self.legacy:
            text = SPACE + text
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        for at in range(1, len(parts), 2):
            if parts[at] in self.strips:
                parts[at - 1] = parts[at - 1].rstrip()
                parts[at + 1] = parts[at + 1].lstrip()
        if len(parts) > 1 and parts[0] == SPACE and parts[1] in self.drops:
            parts[0] = ""
        ids = []
        for at, part in enumerate(parts):
            ids += [self.special[part]] if at % 2 else pieces.encode(part) if part else []
        return ids


@pytest.fixture
def prompt_ids(tmp_path):
    """`prompt_ids(checkpoint)`: what its build makes of a prompt, and the record of that."""

    def tokenizer_of(checkpoint):
        facts = write_tokenizers(checkpoint, tmp_path)
        prompts = PromptTokenizer(
            tokenizer=load_tokenizer(tmp_path / facts.tokenizer),
            limit=10_000,
            template=facts.prompt_template,
            images=facts.images,
            image_token_id=None,
        )
        return prompts, facts.reproduces

    return tokenizer_of


@pytest.fixture
def vicuna_parts(tiny_pair, with_sentencepiece, tmp_path):
    """`vicuna_parts(config)`: LAVIS's, with a sentencepiece model and a `tokenizer_config.json`."""

    def make(config=None):
        parts = dict(tiny_pair("vicuna").parts)
        directory = shutil.copytree(parts["language_model"], tmp_path / "llm")
        return {**parts, "language_model": with_sentencepiece(directory, "llama", config)}

    return make


@pytest.mark.parametrize("legacy", [None, True, False])
def test_laviss_vicuna_reads_as_the_slow_tokenizer(
    vicuna_parts, prompt_ids, sentencepiece_models, legacy
):
    """`legacy` is as tokenizer_config.json says it; without a word, transformers 4.33 has it on."""
    parts = vicuna_parts({} if legacy is None else {"legacy": legacy})
    prompts, reproduced = prompt_ids(checkpoint_from_original("lavis", VICUNA, parts))
    assert reproduced == f"LlamaTokenizer of transformers 4.33.2, legacy={legacy is not False}"
    # LAVIS names `</s>` and `[PAD]` by plain strings, and `<s>` and `<unk>` are special no more.
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "[PAD]": 710}
    slow = Slow(
        sentencepiece_models["llama"],
        special,
        strips=list(special),
        legacy=legacy is not False,
        drops=["</s>", "[PAD]"],
    )
    texts = [*ALL, "[PAD] in front", "a [PAD]  b"]
    if legacy is False:  # docs/compat.md: then such a beginning is not as there
        texts = [text for text in texts if not text.lstrip().startswith(("<s>", "<unk>"))]
    for text in texts:
        assert list(prompts(text).ids) == [2, *slow.ids(text)], text


def test_candidates_are_read_as_prompts(vicuna_parts, prompt_ids, sentencepiece_models):
    prompts, _ = prompt_ids(checkpoint_from_original("lavis", VICUNA, vicuna_parts()))
    slow = Slow(sentencepiece_models["llama"], {"</s>": 2}, strips=["</s>"])
    texts = ["red", "  spaced", " a 7 ", "это"]
    found = answers_from_text(prompts.tokenizer, texts, closed=False)
    assert [list(ids) for ids in found] == [slow.ids(text) for text in texts]


STRIPPING = {"__type": "AddedToken", "content": "<s>", "lstrip": True, "rstrip": True}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("config", "mapped", "strips"),
    [
        ({}, {}, []),
        ({"legacy": False, **TOKENS}, {}, []),  # this version knows no `legacy`
        ({}, TOKENS, ["<s>", "</s>", "<unk>"]),
        (
            TOKENS,
            {
                "bos_token": {"content": "<s>", "lstrip": False, "rstrip": False},
                "eos_token": "</s>",
            },
            ["</s>"],
        ),
        ({"bos_token": STRIPPING}, {}, ["<s>"]),
    ],
)
def test_minigpt4_reads_as_the_slow_tokenizer(
    minigpt4_pairs,
    with_sentencepiece,
    prompt_ids,
    sentencepiece_models,
    tmp_path,
    config,
    mapped,
    strips,
):
    name, pair = minigpt4_pairs("minigpt4-merge")
    directory = shutil.copytree(pair.parts["language_model"], tmp_path / "llm")
    for path in (directory / "special_tokens_map.json", directory / "added_tokens.json"):
        path.unlink(missing_ok=True)
    parts = {**pair.parts, "language_model": with_sentencepiece(directory, "llama", config, mapped)}
    prompts, reproduced = prompt_ids(checkpoint_from_original("minigpt4", name, parts))
    assert reproduced == "LlamaTokenizer of transformers 4.30.0"
    slow = Slow(sentencepiece_models["llama"], {"<unk>": 0, "<s>": 1, "</s>": 2}, strips=strips)
    before, behind = pair.config["prompt_template"].split("{image}")
    assert before.startswith("<s>[INST]")
    for text in ALL:
        found = prompts(text)
        wanted = [1, *slow.ids(before)]
        assert found.places == (len(wanted),)
        assert list(found.ids) == [*wanted, *slow.ids(behind.replace("{prompt}", text))], text


@pytest.fixture
def flant5_parts(tiny_pair, tmp_path):
    parts = dict(tiny_pair("flant5").parts)
    directory = shutil.copytree(parts["language_model"], tmp_path / "llm")
    return {**parts, "language_model": directory}


def test_laviss_t5_keeps_a_space_at_the_end(
    flant5_parts, with_sentencepiece, prompt_ids, sentencepiece_models
):
    """As transformers 4.33 makes a fast tokenizer of T5's sentencepiece model."""
    with_sentencepiece(flant5_parts["language_model"], "t5")
    checkpoint = checkpoint_from_original("lavis", "blip2_t5_instruct/flant5xl", flant5_parts)
    prompts, reproduced = prompt_ids(checkpoint)
    assert reproduced == "T5TokenizerFast of transformers 4.33.2"
    pieces = SentencePieceProcessor(model_file=str(sentencepiece_models["t5"]))
    space = pieces.piece_to_id(SPACE)
    for text in (text for text in PROMPTS if "<" not in text):
        ends = [space] if text[-1].isspace() else []
        assert list(prompts(text).ids) == [*pieces.encode(text), *ends, 1], text


def test_laviss_t5_takes_a_tokenizer_json_as_it_is(flant5_parts, prompt_ids):
    """transformers 5 takes its vocabulary alone."""
    file = flant5_parts["language_model"] / "tokenizer.json"
    state = json.loads(file.read_text())
    state["pre_tokenizer"] = state["pre_tokenizer"]["pretokenizers"][1]  # no cut at white space
    file.write_text(json.dumps(state))
    checkpoint = checkpoint_from_original("lavis", "blip2_t5_instruct/flant5xl", flant5_parts)
    prompts, _ = prompt_ids(checkpoint)
    own = Tokenizer.from_file(str(file))
    for text in PROMPTS:
        assert list(prompts(text).ids) == own.encode(text).ids, text
    assert own.encode("Answer: ").ids != own.encode("Answer:").ids


def test_broken_bytes_are_decoded_as_by_sentencepiece(
    vicuna_parts, prompt_ids, sentencepiece_models
):
    checkpoint = checkpoint_from_original("lavis", VICUNA, vicuna_parts())
    assert language_model_facts(checkpoint).bytes_apart
    tokenizer = prompt_ids(checkpoint)[0].tokenizer
    pieces = SentencePieceProcessor(model_file=str(sentencepiece_models["llama"]))
    word, broken = (
        pieces.encode("what"),
        [pieces.piece_to_id(f"<0x{b:02X}>") for b in b"\xf0\x9f\n"],
    )
    choose = random.Random(0)
    drawn = [[choose.choice(range(3, 710)) for _ in range(12)] for _ in range(100)]
    byte = [[choose.choice(range(3, 259)) for _ in range(9)] + word for _ in range(100)]
    for ids in ([*word, *broken, *word], *drawn, *byte):
        detokeniser = Detokeniser(tokenizer, bytes_apart=True)
        text = "".join([*map(detokeniser.feed, ids), detokeniser.flush()])
        # A byte that is a space, in front of all: the originals strip it, this decoder already has.
        assert text.lstrip(" ") == pieces.decode(ids).lstrip(" "), ids
    assert "\n" in pieces.decode([*word, *broken, *word])


def test_transformers_own_decoding_stays_that_of_hugging_faces_form(tiny):
    facts = language_model_facts(checkpoint_from_directory(tiny("vicuna")))
    assert (facts.bytes_apart, facts.start_token_id) == (False, None)


@pytest.mark.parametrize(
    ("generation", "wanted"), [(None, 1), ({"bos_token_id": 5}, 5), ({"eos_token_id": 2}, None)]
)
def test_generation_begins_with_the_bos_token_of_the_language_model(
    vicuna_parts, generation, wanted
):
    """`generate` makes ids of it where it gets embeddings alone; the tokenizer's is another."""
    parts = vicuna_parts()
    if generation is not None:
        path = parts["language_model"] / "generation_config.json"
        path.write_text(json.dumps(generation))
    facts = language_model_facts(checkpoint_from_original("lavis", VICUNA, parts))
    assert facts.start_token_id == wanted
    assert facts.bos_token_id == 2
