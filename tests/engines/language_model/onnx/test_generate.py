"""Whole answers of small random models, against transformers' `generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import load_tokenizer
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import InputError
from iblip.export.verification.loading import load_model
from tests.engines.language_model.visual import visual

Build = Callable[..., Path]


@pytest.fixture(params=["llama", "t5", "opt"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def whole(kind: str, random_checkpoint: Build) -> Any:
    return load_model(checkpoint_from_directory(random_checkpoint(kind)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 8},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 1.3, "min_new_tokens": 12},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 5},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": -1.5, "early_stopping": True},
        {"num_beams": 5, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 2, "repetition_penalty": 1.4, "min_new_tokens": 4},
        {"num_beams": 5, "no_repeat_ngram_size": 2, "early_stopping": True},
    ],
    ids=str,
)
def test_tokens_are_those_of_generate(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    engine = open_engine(directory, manifest, threads=1)
    prompts = PromptTokenizer.from_build(directory, manifest)
    lengths = set()
    for seed, prompt in enumerate(["What colour is the 3?", "It's red", "Describe the image."]):
        ids = prompts(prompt).ids
        image = [] if facts.is_encoder_decoder else [facts.image_token_id] * 4
        embeds = whole.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat([torch.from_numpy(visual(seed)), embeds], dim=1)
        inputs = {} if facts.is_encoder_decoder else {"input_ids": torch.tensor([[*image, *ids]])}
        wanted = whole.language_model.generate(
            **inputs,
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=list(facts.eos_token_ids),
            **options,
        )[0, len(inputs.get("input_ids", [[0]])[0]) :].tolist()
        request = GenerationRequest(
            prompt=prompt,
            visual_prompt=visual(seed),
            options=GenerationOptions(max_new_tokens=20, **options),
        )
        answer = engine.submit(request).result()
        assert list(answer.token_ids) == [t for t in wanted if t not in facts.eos_token_ids]
        assert answer.completion_tokens == len(wanted)
        lengths.add(tuple(wanted))
    assert len(lengths) > 1
    engine.close()


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.6, "min_new_tokens": 8}, {"num_beams": 4}], ids=str
)
def test_images_may_stand_anywhere_in_a_prompt(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    directory = random_build(kind)
    built = Manifest.read(directory)
    text = replace(
        built.text, images="places", prompt_template="Look: <Img>{image}</Img> {prompt}!"
    )
    limits = replace(built.limits, images=2)
    manifest, facts = replace(built, text=text, limits=limits), built.language_model
    tokenizer = load_tokenizer(directory / built.text.tokenizer)
    pictures = np.concatenate([visual(seed) for seed in range(2)])  # [2, queries, hidden]

    embed, parts, ids = whole.get_input_embeddings(), [], []
    for index, piece in enumerate(["Look: the ", " is red, the", " is it?!"]):
        if index:
            parts.append(torch.from_numpy(pictures[index - 1]))
            ids += [facts.image_token_id] * 4
        said = tokenizer.encode(piece, add_special_tokens=index == 0).ids
        parts.append(embed(torch.tensor(said, dtype=torch.int64)))
        ids += said
    embeds = torch.cat(parts)[None]
    inputs = {} if facts.is_encoder_decoder else {"input_ids": torch.tensor([ids])}
    wanted = whole.language_model.generate(
        **inputs,
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=list(facts.eos_token_ids),
        **options,
    )[0, len(ids) if inputs else 1 :].tolist()  # behind the prompt, or the start token
    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        answer = engine.submit(
            GenerationRequest(
                prompt="the <ImageHere> is red, the<ImageHere> is it?",
                visual_prompt=pictures,
                options=GenerationOptions(max_new_tokens=12, **options),
            )
        ).result()
    assert answer.prompt_tokens == len(ids)
    assert list(answer.token_ids) == [t for t in wanted if t not in facts.eos_token_ids]


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_stop_string_ends_a_beam_as_in_transformers(
    kind: str, random_build: Build, whole: Any
) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer(directory / manifest.text.tokenizer)
    )
    ids = tokenizer("What is it?").input_ids
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    facts = manifest.language_model
    asked = {"num_beams": 4, "max_new_tokens": 16, "length_penalty": 0.5}

    def reference(**stops: Any) -> str:
        made = whole.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            eos_token_id=list(facts.eos_token_ids),
            **asked,
            **stops,
        )[0].tolist()
        return str(tokenizer.decode(made, skip_special_tokens=True))

    stops = sorted({letter for letter in reference()[2:] if letter.isalpha()})[:3]
    assert stops
    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        for stop in stops:
            answer = engine.submit(
                GenerationRequest(
                    prompt="What is it?",
                    visual_prompt=visual(0),
                    options=GenerationOptions.from_mapping({**asked, "stop": [stop]}),
                )
            ).result()
            wanted = reference(stop_strings=[stop], tokenizer=tokenizer)
            assert answer.text == wanted.partition(stop)[0]


def test_an_answer_is_the_same_alone_and_in_a_crowd(kind: str, random_build: Build) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    prompts = ["What colour is the 3?", "It's red", "Describe the image.", "How many digits?"]
    ways: list[dict[str, Any]] = [
        {"min_new_tokens": 9},
        {"temperature": 1.5, "seed": 3, "min_new_tokens": 6},
        {"num_beams": 3, "n": 2},
        {"temperature": 1.0, "seed": 4, "n": 3, "top_k": 20},
    ]
    requests = [
        GenerationRequest(
            prompt=prompts[i % 4],
            visual_prompt=visual(i),
            options=GenerationOptions(max_new_tokens=4 + i % 7 + 6, **ways[i % 3 + (i % 5 == 0)]),
        )
        for i in range(16)
    ]

    def said(answer: Any) -> list[tuple[int, ...]]:
        return [completion.token_ids for completion in (answer, *answer.others)]

    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        alone = [said(engine.submit(request).result()) for request in requests]
    with contextlib.closing(
        open_engine(directory, manifest, threads=1, limits=EngineLimits(slots=16))
    ) as engine:
        crowd: list[Any] = []
        for request in requests:  # they join while others are already half said
            crowd.append(engine.submit(request))
            next(iter(crowd[len(crowd) // 2]))
        assert [said(generation.result()) for generation in crowd] == alone
    assert len({tokens for answer in alone for tokens in answer}) > 16


@pytest.mark.parametrize("kind", ["t5"], indirect=True)
def test_t5_reads_prompts_longer_than_those_of_its_training(
    kind: str, random_build: Build, whole: Any
) -> None:
    """Its positions are relative: transformers reads them, and a build that is told to."""
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    prompt = "What colour is the 3? " * 60
    request = GenerationRequest(
        prompt=prompt, visual_prompt=visual(0), options=GenerationOptions(max_new_tokens=20)
    )
    with (
        open_engine(directory, manifest, threads=1) as usual,
        pytest.raises(InputError, match=r"at most 507 fit.*`--max-length` of `iblip build`"),
    ):
        usual.submit(request)
    limits = EngineLimits(positions=1024)
    ids = PromptTokenizer.from_build(directory, manifest, max_length=1024)(prompt).ids
    assert 700 < len(ids) < 1000
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    wanted = whole.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        do_sample=False,
        max_new_tokens=20,
    )[0, 1:].tolist()
    with open_engine(directory, manifest, threads=1, limits=limits) as engine:
        answer = engine.submit(request).result()
    ends = manifest.language_model.eos_token_ids
    assert list(answer.token_ids) == [token for token in wanted if token not in ends]


@pytest.mark.parametrize("kind", ["llama", "opt"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_the_token_that_an_original_begins_with_is_penalised(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    """`generate` given ids of that token alone beside the embeddings, as transformers 4.33 makes
    them: its repetition penalty sees the token and the answer."""
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    prompt = "What colour is the 3?"
    ids = PromptTokenizer.from_build(directory, manifest)(prompt).ids
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    settings = {"repetition_penalty": 1.5, "max_new_tokens": 12, **options}

    def generate(**inputs: Any) -> list[int]:
        ids: list[int] = whole.language_model.generate(
            **inputs,
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            eos_token_id=list(facts.eos_token_ids),
            **settings,
        )[0].tolist()
        return ids

    first = generate()[0]
    wanted = generate(input_ids=torch.tensor([[first]]))[1:]
    assert wanted != generate()
    found = {}
    for start in (None, first):
        changed = replace(manifest, language_model=replace(facts, start_token_id=start))
        with open_engine(directory, changed, threads=1) as engine:
            chosen = GenerationOptions(penalty_scope="answer", **settings)
            request = GenerationRequest(prompt=prompt, visual_prompt=visual(0), options=chosen)
            found[start] = list(engine.submit(request).result().token_ids)
    ends = facts.eos_token_ids
    assert found[first] == [token for token in wanted if token not in ends]
    assert found[None] == [token for token in generate() if token not in ends]
