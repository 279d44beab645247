from __future__ import annotations

import numpy as np
import pytest

from iblip.engines.vision_cache.cache import VisionCache
from iblip.engines.vision_cache.directory import MIB, CacheDirectory
from iblip.export.errors import EngineError
from iblip.serving.steps.encoding import encode_cached, encode_past_failures

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


class Encoder:
    """Pixels as floats, but for those that Triton's own cache has as failed."""

    def __init__(self, *failed):
        self.failed, self.seen = failed, []

    def __call__(self, inputs):
        self.seen.append(inputs["pixels"].ravel().tolist())
        if self.seen[-1] in self.failed:
            return None
        return inputs["pixels"].astype(np.float32)


def qformer(inputs):
    assert inputs.keys() == {"image_embeds", "ids"}
    return inputs["image_embeds"] + inputs["ids"]


@pytest.fixture
def cached(make_build, tmp_path):
    _, manifest = make_build()
    (tmp_path / "cache").mkdir()

    def ask(encoder, rows, qformer=qformer):
        directory = CacheDirectory(tmp_path / "cache", MIB)
        cache = VisionCache(manifest, memory_bytes=0, directory=directory)
        inputs = {"pixels": np.array(rows, np.uint8), "ids": np.full((len(rows), 1), 0.5)}
        return encode_cached(cache, encoder, qformer, inputs, largest=LARGEST).tolist()

    return ask


def test_only_images_that_are_not_in_the_cache_are_encoded_and_each_once(cached):
    encoder = Encoder()
    assert cached(encoder, [[1], [2], [1]]) == [[1.5], [2.5], [1.5]]
    assert cached(encoder, [[3], [2]]) == [[3.5], [2.5]]
    assert cached(encoder, [[3], [1]]) == [[3.5], [1.5]]
    assert [sorted(seen) for seen in encoder.seen] == [[1, 2], [3]]


def test_an_image_that_failed_is_cached_once_it_was_encoded(cached):
    encoder = Encoder([3])
    assert cached(encoder, [[3]]) == cached(encoder, [[3]]) == [[3.5]]
    assert encoder.seen == [[3], [3], [3, 3]]


def test_a_q_former_without_a_result_is_an_error(cached):
    with pytest.raises(EngineError, match="no visual prompt"):
        cached(Encoder(), [[1]], qformer=lambda inputs: None)
