"""Choosing tokens: transformers' own processors are the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from iblip.engines.language_model.decoding.logits_processors import LogitsProcessors, penalise
from iblip.engines.language_model.decoding.sampling import (
    Sampler,
    choose_seed,
    filter_likely,
    sample,
)
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import EngineError, OptionError

VOCAB, EOS = 500, (2, 7)
DRAWS = 5000
BANNED = ((5,), (11, 12), (13, 14, 15))


def sampler_for(options: GenerationOptions, context: list[int] | None = None) -> Sampler:
    processors = LogitsProcessors(
        options, ends=EOS, context=context or [], banned=BANNED if options.banned_words else ()
    )
    return Sampler(options, processors, seed=choose_seed(options))


def reference(
    options: GenerationOptions, said: list[int], prompt: int, logits: np.ndarray
) -> np.ndarray:
    """Scores after transformers' processors, in the order in which `generate` puts them."""
    processors = LogitsProcessorList()
    if options.logit_bias:
        bias = {(token,): bias for token, bias in options.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(bias))
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if options.banned_words:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in BANNED], list(EOS)))
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
        if options.min_p:
            processors.append(MinPLogitsWarper(options.min_p))
    scores = processors(torch.tensor([said]), torch.from_numpy(logits[None].copy()))
    return scores[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(repetition_penalty=1.5),
        GenerationOptions(repetition_penalty=0.7, min_new_tokens=3),
        GenerationOptions(min_new_tokens=10, repetition_penalty=3.0),
        GenerationOptions(no_repeat_ngram_size=1),
        GenerationOptions(no_repeat_ngram_size=2, repetition_penalty=1.1),
        GenerationOptions(no_repeat_ngram_size=3, min_new_tokens=30),
        GenerationOptions(banned_words=("some",)),
        GenerationOptions(logit_bias={5: 9.0, 11: 9.0, 12: -50.0, 7: -9.5}, min_new_tokens=3),
        GenerationOptions(logit_bias={5: 9.0, 11: 9.0}, banned_words=("some",)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_chooses_what_transformers_does(options: GenerationOptions, seed: int) -> None:
    random = np.random.default_rng(seed)
    prompt = [int(token) for token in random.integers(0, VOCAB, 12)]
    sampler = sampler_for(options, prompt)
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
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_the_same_tokens_stay_in_the_draw(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for seed in range(5):
        logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32) * 4
        wanted = np.flatnonzero(np.isfinite(reference(options, [0], 1, logits)))
        scaled = logits / np.float32(temperature)
        found = filter_likely(scaled, top_k=top_k, top_p=top_p, min_p=min_p)
        assert found.tolist() == wanted.tolist()


def test_ties_at_the_border_of_top_k_all_stay() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    options = GenerationOptions(temperature=1.0, top_k=2)
    wanted = np.flatnonzero(np.isfinite(reference(options, [0], 1, logits)))
    assert filter_likely(logits, top_k=2).tolist() == wanted.tolist() == [1, 2, 3, 4]


def test_the_penalty_passes_over_ids_outside_the_vocabulary() -> None:
    scores = np.array([2.0, -2.0, 4.0], np.float32)
    penalise(scores, np.array([0, 1, 3, 32000, -1]), 2.0)
    assert scores.tolist() == [1.0, -4.0, 4.0]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    options = GenerationOptions(temperature=1.0, seed=11)
    processors = LogitsProcessors(options, ends=())
    draws = 20_000
    sampler = Sampler(options, processors, seed=choose_seed(options))
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=5)
    expected = np.exp(logits) * draws
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(temperature=0.7),
        GenerationOptions(temperature=1.8, top_k=12),
        GenerationOptions(temperature=1.0, top_p=0.8),
        GenerationOptions(temperature=1.5, min_p=0.1),
        GenerationOptions(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02),
        GenerationOptions(temperature=1.0, repetition_penalty=1.6),
        GenerationOptions(temperature=1.0, no_repeat_ngram_size=2, top_k=30),
        GenerationOptions(temperature=1.0, banned_words=("some",), top_p=0.95),
        GenerationOptions(temperature=1.0, min_new_tokens=5, top_k=20),
        GenerationOptions(temperature=1.2, logit_bias={5: 4.0, 2: 3.0, 40: -100.0}, min_p=0.01),
    ],
    ids=repr,
)
def test_draws_follow_the_distribution_of_transformers(options: GenerationOptions) -> None:
    random = np.random.default_rng(1)
    said = [int(token) for token in random.integers(0, VOCAB, 30)] + [11]  # 11, 12 is banned
    logits = random.standard_normal(VOCAB).astype(np.float32) * 2
    logits[[*EOS, 5, 12, *said]] += 4  # so that what is forbidden or disfavoured would be drawn
    scores = torch.from_numpy(reference(options, said, len(said), logits))
    expected = torch.softmax(scores.double(), dim=-1).numpy() * DRAWS
    banned = BANNED if options.banned_words else ()
    processors = LogitsProcessors(options, ends=EOS, context=said, banned=banned)
    first = [Sampler(options, processors, seed=3, index=i)(logits) for i in range(DRAWS)]
    counts = np.bincount(first, minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    counts = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    # Wilson and Hilferty 1931: exceeded once in ten thousand; the seed makes it one draw for ever.
    freedom = counts.size - 1
    spread = 2 / (9 * freedom)
    assert chi_squared < freedom * (1 - spread + 3.72 * spread**0.5) ** 3


def test_a_draw_never_takes_an_impossible_token() -> None:
    class Edge(np.random.Generator):
        def random(self, *args: object, **options: object) -> float:
            return float(np.nextafter(1.0, 0.0))

    scores = np.array([0.0, 0.0, -200.0], np.float32)
    edge = Edge(np.random.PCG64(0))
    assert sample(scores, np.arange(2), edge) == 1
    assert 2 not in filter_likely(np.array([0.0, 1.0, -np.inf], np.float32))


def test_a_seed_repeats_the_answer_and_is_reported() -> None:
    logits = np.random.default_rng(0).standard_normal((30, VOCAB)).astype(np.float32)

    def run(seed: int | None, index: int = 0) -> list[int]:
        options = GenerationOptions(temperature=1.0, seed=seed)
        processors = LogitsProcessors(options, ends=EOS)
        sampler = Sampler(options, processors, seed=seed, index=index)
        return [sampler(row) for row in logits]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(5) != run(5, index=1) == run(5, index=1) != run(6, index=1)


def test_a_seed_is_the_options_own_or_fresh_and_greedy_has_none() -> None:
    assert choose_seed(GenerationOptions(temperature=1.0, seed=3)) == 3
    fresh = {choose_seed(GenerationOptions(temperature=1.0)) for _ in range(3)}
    assert len(fresh) == 3
    assert choose_seed(GenerationOptions(seed=3)) is None


def test_log_probabilities_are_those_before_any_option() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((4, VOCAB)).astype(np.float32) * 3
    options = GenerationOptions(
        logprobs=3, temperature=0.5, top_k=9, repetition_penalty=2.0, logit_bias={9: 20.0}, seed=1
    )
    sampler = sampler_for(options)
    tokens = [sampler(row) for row in logits]
    wanted = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    for row, token, found in zip(wanted, tokens, sampler.logprobs, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-5)
        best = torch.topk(row, 3)
        assert [i for i, _ in found.top] == best.indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_options_that_forbid_everything_are_an_error() -> None:
    sampler = sampler_for(GenerationOptions(no_repeat_ngram_size=1), list(range(VOCAB)))
    with pytest.raises(OptionError, match="forbid every token after 0 tokens"):
        sampler(np.zeros(VOCAB, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_remedy(bad: float) -> None:
    logits = np.zeros(VOCAB, np.float16)
    logits[4] = bad
    with pytest.raises(EngineError, match="--precision language_model=fp32"):
        sampler_for(GenerationOptions())(logits)


def test_the_callers_logits_are_left_as_they_were() -> None:
    logits = np.arange(10, dtype=np.float32)
    options = GenerationOptions(repetition_penalty=2.0, logit_bias={3: 1.0})
    Sampler(options, LogitsProcessors(options, ends=(9,), context=[9]))(logits)
    assert logits.tolist() == list(range(10))
