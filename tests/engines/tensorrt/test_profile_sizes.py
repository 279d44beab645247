"""Profiles from what is said of requests."""

from __future__ import annotations

import re
from typing import Any

import pytest

from iblip.engines.tensorrt.profile import Profile, Span, profile_from_json
from iblip.engines.tensorrt.profile_sizes import ProfileOptions, decoder_profiles, profile_from_word
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.errors import OptionError

EMBEDS = TensorSpec(name="image_embeds", dtype="float16", axes=("batch", 17, 96))
IDS = TensorSpec(name="qformer_input_ids", dtype="int64", axes=("batch", "instruction"))
MOST = {"batch": 8, "instruction": 128}


def _json(options: ProfileOptions, *inputs: TensorSpec) -> list[dict[str, list[int]]]:
    return [p.to_json() for p in options.of_contract(Contract(inputs=inputs, outputs=()))]


def test_one_profile_of_all_sizes_is_tuned_for_what_is_usual() -> None:
    plain = ProfileOptions(max=MOST)
    assert _json(plain, EMBEDS, IDS) == [{"batch": [1, 2, 8], "instruction": [1, 32, 128]}]
    told = ProfileOptions(max=MOST, opt={"batch": 1, "instruction": 20})
    assert _json(told, EMBEDS, IDS) == [{"batch": [1, 1, 8], "instruction": [1, 20, 128]}]


def test_several_profiles_are_kept_in_order_and_lose_the_axes_that_a_graph_has_not() -> None:
    words = ("batch=1,instruction=1:16:32", "batch=1", "batch=1:4:8")
    options = ProfileOptions(max=MOST, profiles=tuple(map(profile_from_word, words)))
    assert _json(options, EMBEDS) == [{"batch": [1, 1, 1]}, {"batch": [1, 4, 8]}]
    assert _json(options, EMBEDS, IDS) == [
        {"batch": [1, 1, 1], "instruction": [1, 16, 32]},
        {"batch": [1, 1, 1], "instruction": [1, 32, 128]},
        {"batch": [1, 4, 8], "instruction": [1, 32, 128]},
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch", "'batch' has no '='"),
        ("batch=1:2", "'1:2' is not a range of sizes"),
        ("batch=-1:2:3", "is not a range of sizes"),
        ("batch=1,batch=2", "batch is named twice"),
        ("batch=4:2:8", "4, 2, 8 is not in order"),
        ("bach=1:2:8", "no axis 'bach'. Did you mean 'batch'?"),
        ("batch=0:2:8", "batch begins at 0; expected 1 or more"),
        ("batch=1:2:16", "batch goes up to 16, and requests to 8. Raise --max-batch"),
        ("batch=1:1:4", "no --profile that holds every request"),
        ("batch=2:2:8", "batch=1:2:8,instruction=1:32:128"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        ProfileOptions(max=MOST, profiles=(profile_from_word(word),))


@pytest.mark.parametrize(
    ("usual", "message"),
    [
        ({"batch": 9}, "--opt-batch is 9; expected 1 to 8, the limit of --max-batch"),
        ({"instruction": 4}, "--opt-instruction: this build has no instruction"),
    ],
)
def test_what_is_usual_lies_within_what_is_served(usual: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ProfileOptions(max={"batch": 8}, opt=usual)


def test_a_profile_wants_a_size_for_every_axis() -> None:
    with pytest.raises(OptionError, match="no largest size for axis 'instruction' of qformer_in"):
        _json(ProfileOptions(max={"batch": 8}), EMBEDS, IDS)


@pytest.mark.parametrize("sizes", [(-1, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_a_span_out_of_order_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(OptionError, match="not in order"):
        Span(min=sizes[0], opt=sizes[1], max=sizes[2])


def test_a_profile_survives_json() -> None:
    profile = Profile(axes={"batch": Span(min=1, opt=2, max=8)})
    assert profile_from_json(profile.to_json()) == profile


def _specs(*axes: tuple[str, ...]) -> Any:
    return tuple(
        TensorSpec(name=f"t{index}", dtype="float32", axes=each) for index, each in enumerate(axes)
    )


def test_a_decoder_has_a_profile_for_prefill_and_one_for_every_token() -> None:
    contract = Contract(
        inputs=_specs(("batch", "sequence"), ("batch", "total"), ("batch", "past")), outputs=()
    )
    prefill, decode = decoder_profiles(contract, slots=8, positions=256)
    assert prefill.to_json() == {
        "batch": [1, 1, 8],
        "sequence": [1, 64, 256],
        "total": [1, 64, 256],
        "past": [0, 0, 0],
    }
    assert decode.to_json() == {
        "batch": [1, 2, 8],
        "sequence": [1, 1, 1],
        "total": [2, 65, 256],
        "past": [1, 64, 255],
    }


def test_a_graph_without_a_past_has_one_profile() -> None:
    contract = Contract(inputs=_specs(("batch", "sequence")), outputs=())
    (only,) = decoder_profiles(contract, slots=8, positions=256)
    assert only.to_json() == {"batch": [1, 2, 8], "sequence": [1, 64, 256]}
