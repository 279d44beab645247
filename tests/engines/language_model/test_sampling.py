"""Choosing tokens: transformers' own processors are the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engines.language_model.sampling import Sampler, draw, likeliest, penalise
from engines.language_model.types import GenerationOptions
from export.errors import EngineError

VOCAB, EOS = 500, (2, 7)


def reference(
    options: GenerationOptions, said: list[int], prompt: int, logits: np.ndarray
) -> np.ndarray:
    """Scores after transformers' processors, in the order in which `generate` puts them."""
    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.min_new_tokens:
        processors.append(
            MinNewTokensLengthLogitsProcessor(prompt, options.min_new_tokens, list(EOS))
        )
    if options.temperature:
        processors.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(TopPLogitsWarper(options.top_p))
    scores = processors(torch.tensor([said]), torch.from_numpy(logits[None].copy()))
    return scores[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(repetition_penalty=1.5),
        GenerationOptions(repetition_penalty=0.7, min_new_tokens=3),
        GenerationOptions(min_new_tokens=10, repetition_penalty=3.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_chooses_what_transformers_does(options: GenerationOptions, seed: int) -> None:
    random = np.random.default_rng(seed)
    prompt = [int(token) for token in random.integers(0, VOCAB, 12)]
    sampler = Sampler(options, eos_token_ids=EOS, context=prompt)
    said = list(prompt)
    favourite = random.standard_normal(VOCAB).astype(np.float32) * 3
    favourite[list(EOS)] += 8
    for _ in range(20):
        logits = favourite + random.standard_normal(VOCAB).astype(np.float32) * 0.1
        wanted = int(reference(options, said, len(prompt), logits).argmax())
        assert sampler(logits) == wanted
        said.append(wanted)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 499, 500, 9999])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_the_same_tokens_stay_in_the_draw(temperature: float, top_k: int, top_p: float) -> None:
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(5):
        logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32) * 4
        wanted = np.flatnonzero(np.isfinite(reference(options, [0], 1, logits)))
        scaled = logits / np.float32(temperature)
        assert likeliest(scaled, top_k=top_k, top_p=top_p).tolist() == wanted.tolist()


def test_ties_at_the_border_of_top_k_all_stay() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    options = GenerationOptions(temperature=1.0, top_k=2)
    wanted = np.flatnonzero(np.isfinite(reference(options, [0], 1, logits)))
    assert likeliest(logits, top_k=2).tolist() == wanted.tolist() == [1, 2, 3, 4]


def test_the_penalty_passes_over_ids_outside_the_vocabulary() -> None:
    scores = np.array([2.0, -2.0, 4.0], np.float32)
    penalise(scores, np.array([0, 1, 3, 32000, -1]), 2.0)
    assert scores.tolist() == [1.0, -4.0, 4.0]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    options = GenerationOptions(temperature=1.0, seed=11)
    sampler = Sampler(options, eos_token_ids=())
    draws = 20_000
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=5)
    expected = np.exp(logits) * draws
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_a_draw_never_takes_an_impossible_token() -> None:
    class Edge(np.random.Generator):
        def random(self, *args: object, **options: object) -> float:
            return float(np.nextafter(1.0, 0.0))

    scores = np.array([0.0, 0.0, -200.0], np.float32)
    edge = Edge(np.random.PCG64(0))
    assert draw(scores, np.arange(2), edge) == 1
    assert 2 not in likeliest(np.array([0.0, 1.0, -np.inf], np.float32))


def test_a_seed_repeats_the_answer_and_is_reported() -> None:
    logits = np.random.default_rng(0).standard_normal((30, VOCAB)).astype(np.float32)

    def run(seed: int | None) -> tuple[list[int], int | None]:
        options = GenerationOptions(temperature=1.0, seed=seed)
        sampler = Sampler(options, eos_token_ids=EOS)
        return [sampler(row) for row in logits], sampler.seed

    assert run(5) == run(5)
    assert run(5)[0] != run(6)[0]
    fresh, seed = run(None)
    assert seed is not None
    assert run(seed)[0] == fresh


def test_greedy_has_no_seed() -> None:
    assert Sampler(GenerationOptions(seed=3), eos_token_ids=EOS).seed is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_remedy(bad: float) -> None:
    logits = np.zeros(VOCAB, np.float16)
    logits[4] = bad
    with pytest.raises(EngineError, match="--precision language_model=fp32"):
        Sampler(GenerationOptions(), eos_token_ids=EOS)(logits)


def test_the_callers_logits_are_left_as_they_were() -> None:
    logits = np.arange(10, dtype=np.float32)
    Sampler(GenerationOptions(repetition_penalty=2.0), eos_token_ids=(9,), context=[9])(logits)
    assert logits.tolist() == list(range(10))
