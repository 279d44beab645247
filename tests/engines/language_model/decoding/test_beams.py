"""Beam search by itself, where the right answer can be counted out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from iblip.engines.language_model.decoding.beams import BeamSearch, EarlyStopping
from iblip.export.errors import EngineError

VOCAB, EOS, LIMIT = 5, 0, 4


def search(
    *, width: int, length_penalty: float = 1.0, early_stopping: EarlyStopping = "never"
) -> BeamSearch:
    return BeamSearch(
        width=width,
        limit=LIMIT,
        ends=(EOS,),
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        process_logits=lambda scores, tokens: None,
    )


def logits_after(tokens: tuple[int, ...], seed: int) -> np.ndarray:
    """A model: any logits, the same for the same tokens."""
    return np.random.default_rng([seed, *tokens]).standard_normal(VOCAB).astype(np.float32) * 2


def run(one: BeamSearch, seed: int) -> BeamSearch:
    while not one.done:
        running = one.running
        parents = one.accept(np.stack([logits_after(beam.tokens, seed) for beam in running]))
        for parent, beam in zip(parents, one.running, strict=True):
            assert beam.tokens[:-1] == running[parent].tokens
    return one


def every_answer(seed: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    found = []
    for length in range(1, LIMIT + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            ends = [at for at, token in enumerate(tokens) if token == EOS]
            if ends not in ([], [length - 1]) or (not ends and length < LIMIT):
                continue
            score = 0.0
            for at, token in enumerate(tokens):
                row = logits_after(tokens[:at], seed).astype(np.float64)
                score += row[token] - np.log(np.exp(row).sum())
            found.append((score / length**length_penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_search_that_is_wide_enough_finds_the_best(seed: int, length_penalty: float) -> None:
    done = run(search(width=VOCAB**LIMIT, length_penalty=length_penalty), seed)
    wanted = every_answer(seed, length_penalty)[:10]
    assert [beam.tokens for beam in done.finished[:10]] == [tokens for _, tokens in wanted]
    scores = [float(beam.score) for beam in done.finished[:10]]
    assert scores == pytest.approx([score for score, _ in wanted], abs=1e-4)


def test_early_stopping_ends_at_as_many_finished_as_beams() -> None:
    one = search(width=2, early_stopping=True)
    row = np.array([3, 2, 1, 0, 0], np.float32)  # the end is always the likeliest
    one.accept(row[None])
    assert ([beam.tokens for beam in one.finished], one.done) == ([(EOS,)], False)
    one.accept(np.stack([row, row]))
    assert len(one.finished) == 2
    assert one.done


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineError, match="returned nan"):
        search(width=2).accept(np.full((1, VOCAB), np.nan, np.float32))


@pytest.mark.parametrize("possible", [3, 40, 1000], ids="{} tokens".format)
def test_the_best_of_a_large_vocabulary_go_on(possible: int) -> None:
    """Fewer tokens are possible than beams, than blocks of a step's scores, or more than both."""
    logits = np.full(1000, -np.inf, np.float32)
    logits[:possible] = np.random.default_rng(0).permutation(possible)
    one = search(width=4)
    one.accept(logits[None])
    best = [int(token) for token in np.argsort(-logits)[: min(possible, 8)] if token != EOS]
    assert [beam.tokens for beam in one.running] == [(token,) for token in best[:4]]
