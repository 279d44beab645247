from __future__ import annotations

import numpy as np
import pytest

from iblip.export.errors import EngineError
from iblip.serving.steps.encoding import encode_past_failures

LARGEST = 4


class Cached:
    """A chain that doubles its rows, before a cache that has failed runs of some requests."""

    def __init__(self, *failed):
        self.failed = [np.asarray(one) for one in failed]
        self.sizes = []

    def __call__(self, inputs):
        rows = inputs["pixels"]
        self.sizes.append(len(rows))
        assert len(rows) == len(inputs["ids"])
        if any(np.array_equal(rows, one) for one in self.failed):
            return None
        return 2 * rows


def encode(chain, rows):
    inputs = {"pixels": np.array(rows), "ids": np.array(rows)}
    return encode_past_failures(chain, inputs, largest=LARGEST)


def test_what_has_not_failed_is_encoded_at_once():
    chain = Cached()
    assert encode(chain, [[1], [2]]).tolist() == [[2], [4]]
    assert chain.sizes == [2]


def test_images_that_failed_together_are_encoded_alone():
    chain = Cached([[1], [2]])
    assert encode(chain, [[1], [2]]).tolist() == [[2], [4]]
    assert chain.sizes == [2, 1, 1]


def test_an_image_that_failed_is_encoded_in_another_number():
    chain = Cached([[3]], [[3], [3]])
    assert encode(chain, [[3]]).tolist() == [[6]]
    assert chain.sizes == [1, 1, 2, 3]


def test_an_image_that_failed_in_every_number_is_an_error():
    failed = [[[5]] * count for count in range(1, LARGEST + 1)]
    with pytest.raises(EngineError, match="failed to be encoded"):
        encode(Cached(*failed), [[5]])
