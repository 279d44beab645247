from __future__ import annotations

import numpy as np
import pytest

from iblip.export.synthesis.values import PIECE, SMALL, pieces, spread

T5 = {"d_kv": 64}


def values(name="a.weight", count=PIECE + 7, dtype="float32", seed=0):
    made = pieces(name, count, dtype, mean=0.5, deviation=0.25, seed=seed)
    return np.concatenate(list(made))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_normal(dtype):
    found = values(dtype=dtype)
    assert found.dtype == dtype
    assert found.shape == (PIECE + 7,)
    wide = found.astype(np.float64)
    assert wide.mean() == pytest.approx(0.5, abs=2e-3)
    assert wide.std() == pytest.approx(0.25, rel=5e-3)
    # Of a normal distribution 31.7 % lie beyond one deviation, 4.55 % beyond two.
    beyond = [(np.abs(wide - 0.5) > 0.25 * n).mean() for n in (1, 2)]
    assert beyond == pytest.approx([0.3173, 0.0455], abs=4e-3)


def test_a_seed_and_a_name_decide_them():
    assert np.array_equal(values(), values())
    assert not np.array_equal(values(), values(seed=1))
    assert not np.array_equal(values(), values("b.weight"))
    assert abs(np.corrcoef(values(), values("b.weight"))[0, 1]) < 0.01


def test_a_matrix_keeps_the_size_of_what_flows_through_it():
    assert spread("x.fc1.weight", (100, 400), {}) == (0.0, 0.05)
    assert spread("patch_embedding.weight", (8, 4, 5, 5), {}) == (0.0, 0.1)
    assert spread("query_tokens", (1, 32, 400), {}) == (0.0, 0.05)


def test_norms_are_one_and_biases_small():
    assert spread("x.norm.weight", (64,), {}) == (1.0, SMALL)
    assert spread("x.fc1.bias", (64,), {}) == (0.0, SMALL)


def test_scores_that_t5_does_not_divide_are_small_by_their_queries():
    name = "encoder.block.0.layer.0.SelfAttention.{}.weight"
    assert spread(name.format("q"), (64, 100), T5) == (0.0, 0.1 / 8)
    assert spread(name.format("k"), (64, 100), T5) == (0.0, 0.1)
