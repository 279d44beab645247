"""Candidates scored: against transformers, in any number of rows, and beside other requests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import InstructBlipForConditionalGeneration

from iblip.engines.language_model.decoding.ranking import CandidateTree
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.option_table import MOST_CANDIDATES
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import answers_from_text
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import DeadlineError, EngineError, OptionError
from tests.engines.language_model.visual import visual

Build = Callable[..., Path]
Make = Callable[..., Any]
VOCAB = 5
PROMPT = "What colour is the 3?"


def logits_after(tokens: Sequence[int]) -> np.ndarray:
    """A model: any logits, the same for the same tokens."""
    return np.random.default_rng([7, *tokens]).standard_normal(VOCAB).astype(np.float32) * 2


def logprob(tokens: Sequence[int]) -> float:
    total = 0.0
    for at, token in enumerate(tokens):
        row = logits_after(tokens[:at]).astype(np.float64)
        total += row[token] - np.log(np.exp(row).sum())
    return total


candidate_lists = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=40
)


@settings(max_examples=200)
@given(candidates=candidate_lists, data=st.data())
def test_any_number_of_rows_scores_every_candidate(
    candidates: list[list[int]], data: st.DataObject
) -> None:
    tree, rows, seen = CandidateTree(candidates), [()], []
    while rows:
        seen += rows
        most = data.draw(st.integers(1, 6))
        moves = tree.accept(np.stack([logits_after(row) for row in rows]), most)
        assert len(moves) <= max(most, len(rows))
        rows = [(*rows[row][: len(rows[row]) - back], token) for row, back, token in moves]
    assert tree.logprobs == pytest.approx([logprob(tokens) for tokens in candidates], abs=1e-5)
    # Nothing is read twice, and nothing that tells no candidate from another.
    beginnings = {tuple(tokens[:at]) for tokens in candidates for at in range(len(tokens))}
    assert sorted(seen) == sorted(beginnings)


def test_as_many_rows_as_there_may_be_are_at_work() -> None:
    candidates = [[first, second, 0] for first in range(5) for second in range(5)]
    tree, rows, counts = CandidateTree(candidates), [()], []
    while rows:
        counts.append(len(rows))
        moves = tree.accept(np.stack([logits_after(row) for row in rows]), 4)
        rows = [(*rows[row][: len(rows[row]) - back], token) for row, back, token in moves]
    assert sum(counts) == 1 + 5 + 25
    assert len(counts) <= 1 + (5 + 25) / 4 + 2  # and some steps while there is less to do


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineError, match="returned nan"):
        CandidateTree([[1]]).accept(np.full((1, VOCAB), np.nan, np.float32), 1)


def test_a_candidate_is_spelt_as_an_answer_is(tokenizers: dict[str, Tokenizer]) -> None:
    wanted = {"llama": ("▁", ""), "t5": ("▁", "</s>"), "opt": ("Ġ", "")}
    for name, (mark, end) in wanted.items():
        tokenizer = tokenizers[name]
        ((*ids,),) = answers_from_text(tokenizer, ["red 3"], closed=name == "t5")
        tokens = "".join(tokenizer.id_to_token(id_) for id_ in ids)
        assert tokens == f"{mark}red{mark}3{end}"
    # A space that is there already is not doubled.
    opt = tokenizers["opt"]
    assert (
        answers_from_text(opt, [" red", "red"], closed=False)
        == [tuple(opt.encode(" red", add_special_tokens=False).ids)] * 2
    )


# Against transformers.


@pytest.fixture(params=["llama", "t5"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def request_for(prompt: str = PROMPT, image: int = 0, **options: Any) -> GenerationRequest:
    made = GenerationOptions.from_mapping(options)
    return GenerationRequest(prompt=prompt, visual_prompt=visual(image), options=made)


@cache
@torch.no_grad()
def reference(
    source: Path, prompt_ids: tuple[int, ...], candidates: tuple[str, ...]
) -> list[tuple[tuple[int, ...], float]]:
    """Token ids and summed log-probability of each candidate: equal lengths at once, no cache."""
    whole = InstructBlipForConditionalGeneration.from_pretrained(source).eval().language_model
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    embed = whole.get_input_embeddings()
    prompt = torch.cat([torch.from_numpy(visual(0)[0]), embed(torch.tensor(prompt_ids))])
    closed = whole.config.is_encoder_decoder  # with its end-of-sequence token, as LAVIS counts
    spelt = [tokenizer.encode(text, add_special_tokens=closed).ids for text in candidates]
    found = {}
    for length in {len(ids) for ids in spelt}:
        chosen = [index for index, ids in enumerate(spelt) if len(ids) == length]
        labels = torch.tensor([spelt[index] for index in chosen])
        before = prompt.expand(len(chosen), -1, -1)
        if closed:
            logits = whole(inputs_embeds=before, labels=labels).logits
        else:
            embeds = torch.cat([before, embed(labels)], dim=1)
            logits = whole(inputs_embeds=embeds, use_cache=False).logits[:, len(prompt) - 1 : -1]
        each = torch.log_softmax(logits.double(), dim=-1).gather(2, labels[:, :, None])
        found.update(zip(chosen, each.sum(dim=(1, 2)).tolist(), strict=True))
    return [(tuple(ids), found[index]) for index, ids in enumerate(spelt)]


def many() -> list[str]:
    """Hundreds: with long common beginnings, beginnings of one another, single tokens, twins."""
    colours, places = ("red", "green", "blue", "naïve 你好"), ("left", "right", "top")
    made = [str(number) for number in range(40)]
    made += [f"The {number} is {colour}" for number in range(10) for colour in colours]
    made += [
        f"The {number} is {colour} and it is on the {place}"
        for number in range(10)
        for colour in colours
        for place in places
    ]
    return [*made, "e", "a", "The", "The 3 is red", "a"]


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_scores_are_those_of_transformers(
    kind: str, slots: int, random_build: Build, random_checkpoint: Build
) -> None:
    directory, candidates = random_build(kind), many()
    manifest = Manifest.read(directory)
    prompt_ids = PromptTokenizer.from_build(directory, manifest)(PROMPT).ids
    wanted = reference(random_checkpoint(kind), prompt_ids, tuple(candidates))
    limits = EngineLimits(slots=slots)
    with contextlib.closing(open_engine(directory, manifest, threads=1, limits=limits)) as engine:
        delta, answer = engine.submit(request_for(candidates=candidates))
        penalised = engine.submit(request_for(candidates=candidates, length_penalty=1.0)).result()
    assert len(candidates) > 200
    ranking = answer.ranking
    assert sorted(found.index for found in ranking) == list(range(len(candidates)))
    for found in ranking:
        ids, score = wanted[found.index]
        assert (found.text, found.token_ids) == (candidates[found.index], ids)
        assert found.logprob == found.score == pytest.approx(score, abs=1e-4, rel=1e-6)
    assert [f.score for f in ranking] == sorted((f.score for f in ranking), reverse=True)
    twins = [found for found in ranking if found.text == "a"]
    assert twins[0].score == twins[1].score
    assert twins[0].index < twins[1].index
    best = ranking[0]
    assert delta.text == answer.text == best.text
    assert answer.finish_reason == "ranked"
    assert answer.token_ids == best.token_ids[: -1 if kind == "t5" else None]
    assert (answer.completion_tokens, answer.score) == (len(best.token_ids), best.score)
    each = [wanted[f.index][1] / len(f.token_ids) for f in penalised.ranking]
    assert [f.score for f in penalised.ranking] == pytest.approx(each, abs=1e-4)
    assert [f.index for f in penalised.ranking] != [f.index for f in ranking]


def test_a_ranking_is_the_same_alone_and_in_a_crowd(kind: str, random_build: Build) -> None:
    directory, candidates = random_build(kind), many()[::5]
    manifest = Manifest.read(directory)
    others = [
        request_for(f"Describe the {i}.", i, min_new_tokens=5 + i, max_new_tokens=9 + i, **way)
        for i, way in enumerate([{}, {"num_beams": 3}, {"temperature": 1.5, "seed": 1, "n": 2}] * 3)
    ]
    ranked = [request_for(candidates=candidates), request_for(candidates=candidates[:20])]
    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        alone = [engine.submit(request).result() for request in (*others, *ranked)]
        crowd = [engine.submit(request) for request in (*ranked, *others, *ranked)]
        *found, again, last = [generation.result() for generation in crowd]
    for answer, wanted in zip(found[2:], alone, strict=False):
        assert answer.token_ids == wanted.token_ids
    for answer, wanted in zip((*found[:2], again, last), alone[-2:] * 2, strict=True):
        assert [f.index for f in answer.ranking] == [f.index for f in wanted.ranking]
        scores = [f.score for f in wanted.ranking]
        assert [f.score for f in answer.ranking] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["red", "x " * 600], "candidates has 'x x x .*…', which has 1[0-9]+ tokens; at most"),
        (["red", "<image>"], "candidates has '<image>', which this model's tokens cannot spell"),
    ],
)
def test_a_candidate_that_the_model_cannot_say_is_named(
    kind: str, random_build: Build, candidates: list[str], message: str
) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    # The image's token is one behind the vocabulary in real checkpoints.
    facts = manifest.language_model
    facts = replace(facts, vocab_size=facts.image_token_id)
    manifest = replace(manifest, language_model=facts)
    with (
        contextlib.closing(open_engine(directory, manifest, threads=1)) as engine,
        pytest.raises(OptionError, match=message),
    ):
        engine.submit(request_for(candidates=candidates))


# Beside other requests, on a model that says what it is told.


@pytest.fixture
def gated(engine: Make, scripted: Make) -> Make:
    def make(capacity: int, script: str = "x" * 200) -> tuple[Any, Any]:
        model = scripted(script, capacity=capacity)
        model.gate = threading.Semaphore(0)
        return model, engine(model, max_length=5000)

    return make


def words(count: int) -> list[str]:
    """Candidates that share nothing but the first byte, a space; two steps each, and one for it."""
    return [f"{chr(33 + i)}bc" for i in range(count)]


def test_a_ranking_takes_the_rows_that_nobody_wants(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    model.gate.release(1000)
    answer = one.submit(ask(candidates=words(20))).result()
    assert len(answer.ranking) == 20
    assert model.batches == [1, *[4] * (20 * 2 // 4)]
    assert model.live == []


def test_a_ranking_makes_room_for_those_who_come(gated: Make, ask: Make) -> None:
    model, one = gated(4)
    ranking = one.submit(ask(candidates=words(60)))
    model.gate.release(6)
    model.wait_for_steps(6)
    assert model.batches[-1] == 4
    beams = one.submit(ask(num_beams=3, max_new_tokens=8))
    model.gate.release(1000)
    assert beams.result().text == "x" * 8
    assert len(ranking.result().ranking) == 60
    assert model.live == []


def test_a_cancelled_ranking_frees_its_slots_within_a_step(gated: Make, ask: Make) -> None:
    model, one = gated(3)
    ranking = one.submit(ask(candidates=words(50)))
    late = one.submit(ask(candidates=words(50), deadline=0.0))
    model.gate.release(4)
    model.wait_for_steps(4)
    ranking.cancel()
    waiting = one.submit(ask(num_beams=3, max_new_tokens=5))
    model.gate.release(6)
    answer = ranking.result()
    assert (answer.finish_reason, answer.text, answer.ranking) == ("cancelled", "", ())
    assert waiting.result().text == "xxxxx"
    with pytest.raises(DeadlineError):
        late.result()
    assert model.live == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"candidates": [""]},
            "candidates is .*; expected a list of at most 1000 non-empty strings",
        ),
        ({"candidates": ["a", " \n"]}, r"candidates has ' \\n'; expected texts that are not blank"),
        (
            {"candidates": "a"},
            "candidates is 'a'; expected a list of at most 1000 non-empty strings",
        ),
        ({"candidates": ["\ud800"]}, "candidates has '.*', which is not valid Unicode text"),
        (
            {"candidates": ["a"] * (MOST_CANDIDATES + 1)},
            f"candidates has {MOST_CANDIDATES + 1} texts; expected at most {MOST_CANDIDATES}",
        ),
        (
            {"candidates": ["a"], "num_beams": 2, "stop": ["b"]},
            "candidates are given, and num_beams, stop; a ranking generates nothing",
        ),
        ({"candidates": ["a"], "temperature": 0.5}, "candidates are given, and temperature"),
        ({"candidates": ["a"], "max_new_tokens": 5}, "candidates are given, and max_new_tokens"),
        (
            {"candidates": ["a"], "length_penalty": 11},
            "length_penalty is 11; expected a number from -10",
        ),
    ],
)
def test_what_is_no_ranking_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenerationOptions.from_mapping(options)


def test_candidates_travel_as_json() -> None:
    options = GenerationOptions(candidates=("a", "b c"), length_penalty=0.5)
    assert options.to_mapping() == {"candidates": ["a", "b c"], "length_penalty": 0.5}
    assert GenerationOptions.from_mapping(options.to_mapping()) == options
