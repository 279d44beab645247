"""What may share a batch: real graphs of the demo build, and requests that do not fit them."""

from __future__ import annotations

import numpy as np
import pytest

from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import ContractError, InputError
from iblip.serving.steps.batches import run_joined
from iblip.serving.steps.feeds import FeedRules


@pytest.fixture(scope="module")
def manifest(vicuna_build):
    return Manifest.read(vicuna_build)


@pytest.fixture
def rules(manifest):
    """`rules("qformer")`: as Triton hands its requests over."""
    return lambda component: FeedRules.from_manifest(manifest, component, row_axis=True)


def embeds(manifest, batch, seed=0):
    axes = manifest.components["vision_encoder"].graphs["model"].contract.outputs[0].axes[1:]
    return np.random.default_rng(seed).standard_normal((batch, *axes)).astype(np.float32)


def instruction(manifest, batch=1, length=16, token=5, seed=0):
    """Tensors of the Q-Former, `[batch, ...]`."""
    return {
        "image_embeds": embeds(manifest, batch, seed),
        "qformer_input_ids": np.full((batch, length), token, np.int64),
        "qformer_attention_mask": np.ones((batch, length), np.int64),
    }


def from_triton(tensors):
    return {name: array[:, None] for name, array in tensors.items()}


def same(feed, expected):
    assert feed.keys() == expected.keys()
    for name, array in feed.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sound_request_is_what_was_sent(manifest, rules, batch):
    sent = instruction(manifest, batch)
    same(rules("qformer").checked(from_triton(sent)), sent)


def test_a_repository_without_the_row_axis_is_read_as_it_is(manifest):
    sent = instruction(manifest, 2)
    same(FeedRules.from_manifest(manifest, "qformer", row_axis=False).checked(sent), sent)
    empty = {name: array[:0] for name, array in sent.items()}
    with pytest.raises(InputError, match="has a batch of 0; expected 1 or more"):
        FeedRules.from_manifest(manifest, "qformer", row_axis=False).checked(empty)


def test_a_batch_of_none_is_the_row_that_triton_hands_over(manifest, rules):
    # Without the 0, and with the axis that the config adds.
    sent = instruction(manifest)
    same(rules("qformer").checked(sent), sent)


@pytest.mark.parametrize("token", [99999, -1, -99999])
def test_a_token_outside_of_the_vocabulary_is_refused(manifest, rules, token):
    asked = instruction(manifest)
    asked["qformer_input_ids"][0, 3] = token
    size = manifest.text.qformer_vocab_size
    with pytest.raises(InputError, match=f"has the token {token}; expected 0 to {size - 1}, the Q"):
        rules("qformer").checked(from_triton(asked))


@pytest.mark.parametrize("value", [7, -1])
def test_a_mask_of_other_numbers_is_refused(manifest, rules, value):
    asked = instruction(manifest, batch=2)
    asked["qformer_attention_mask"][1, 15] = value
    with pytest.raises(InputError, match=f"mask' has {value}; expected 0 or 1"):
        rules("qformer").checked(from_triton(asked))


def test_the_last_token_of_the_vocabulary_is_read(manifest, rules, vicuna_build):
    asked = instruction(manifest, token=manifest.text.qformer_vocab_size - 1)
    feed = rules("qformer").checked(from_triton(asked))
    with open_runner(vicuna_build, manifest, "qformer") as runner:
        assert np.isfinite(runner.infer(feed)["visual_prompt"]).all()


@pytest.mark.parametrize("excess", [1, 1000])
def test_an_instruction_that_is_too_long_is_refused(manifest, rules, excess):
    most = manifest.max_instruction
    rules("qformer").checked(from_triton(instruction(manifest, length=most)))
    asked = from_triton(instruction(manifest, length=most + excess))
    with pytest.raises(InputError, match=f"has {most + excess} tokens a row; expected 1 to {most}"):
        rules("qformer").checked(asked)


def test_an_instruction_without_tokens_is_refused(manifest, rules):
    with pytest.raises(InputError, match="has 0 tokens a row"):
        rules("qformer").checked(from_triton(instruction(manifest, length=0)))


def test_what_the_contract_says_is_held(manifest, rules):
    asked = from_triton(instruction(manifest))
    for change, told in (
        (
            {"image_embeds": asked["image_embeds"].astype(np.float64)},
            "is float64, expected float32",
        ),
        ({"image_embeds": asked["image_embeds"][..., :-1]}, "expected image_embeds float32"),
        (
            {"qformer_attention_mask": asked["qformer_attention_mask"][..., :-1]},
            "axis 'instruction'",
        ),
    ):
        with pytest.raises(ContractError, match=told):
            rules("qformer").checked({**asked, **change})
    with pytest.raises(ContractError, match="'image_embeds' is missing"):
        rules("qformer").checked({n: a for n, a in asked.items() if n != "image_embeds"})


def test_only_what_the_graph_itself_refuses_fails(manifest, vicuna_build):
    """ONNX Runtime names the token, not the request: the run is taken apart."""
    good = [instruction(manifest, batch, seed=batch) for batch in (1, 2)]
    bad = instruction(manifest, token=manifest.text.qformer_vocab_size)
    with open_runner(vicuna_build, manifest, "qformer") as runner:
        first, failed, second = run_joined([good[0], bad, good[1]], runner.infer, largest=8)
        for result, feed in ((first, good[0]), (second, good[1])):
            np.testing.assert_array_equal(
                result["visual_prompt"], runner.infer(feed)["visual_prompt"]
            )
    assert isinstance(failed, Exception)
    assert "idx=" in str(failed) or "out of" in str(failed)
