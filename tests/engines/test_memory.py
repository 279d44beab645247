"""What a build takes of a GPU, and what fits: numbers of the released models."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from iblip.engines.memory import (
    CONTEXT,
    LEAST_POSITIONS,
    VLLM_WORK,
    ComponentMemory,
    Layer,
    MemoryPlan,
    bytes_from_text,
    choose_limits,
)
from iblip.export.errors import OptionError
from iblip.export.models.table import MODELS

GB = 10**9
VICUNA_7B, T5_XXL = "instructblip-vicuna-7b", "instructblip-flan-t5-xxl"
POSITION = {VICUNA_7B: 2 * 32 * 4096 * 2, T5_XXL: 2 * 2 * 24 * 4096 * 2}
"""Keys and values of all layers in 16 bits; T5 has the encoder's too."""

Make = Callable[[int, int], MemoryPlan]


def make_plan(name: str, card: int, *, llm_bytes: float = 2, **given: bool) -> Make:
    """Plans of a model whose language model has so many bytes a weight, all else 2."""
    parts = MODELS[name].parameters
    rows = tuple(
        ComponentMemory(component=component, weights=int(weights), work=300 << 20)
        for component, weights in (
            ("vision_encoder", 2 * parts["vision_encoder"]),
            ("qformer", 2 * (parts["qformer"] + parts["projection"])),
            ("language_model", llm_bytes * parts["language_model"]),
        )
    )

    def plan(slots: int, positions: int) -> MemoryPlan:
        return MemoryPlan(
            components=rows,
            position=POSITION[name],
            slots=slots,
            positions=positions,
            card=card,
            **given,
        )

    return plan


def choose(make: Make, slots: int | None = None, positions: int | None = None) -> MemoryPlan | None:
    return choose_limits(make, slots=slots, positions=positions, default_slots=8, longest=2048)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * GB), ("23.5 GiB", int(23.5 * 2**30)), ("512MiB", 2**29), ("0.5TB", 500 * GB)],
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert bytes_from_text(text) == size


@pytest.mark.parametrize("text", ["24", "24gb", "GB", "-1GB", "0GB", "24 GB free", "24 G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"--gpu-memory is {text!r}; expected a size")):
        bytes_from_text(text)


def test_vicuna_7b_in_16_bits_fits_24_gb_with_shorter_sequences() -> None:
    chosen = choose(make_plan(VICUNA_7B, 24 * GB))
    assert chosen is not None
    assert chosen.fits
    assert chosen.slots == 8  # as many as five beams want
    assert LEAST_POSITIONS <= chosen.positions < 2048
    assert chosen.positions % 64 == 0
    longer = make_plan(VICUNA_7B, 24 * GB)(8, chosen.positions + 64)
    assert not longer.fits
    usual = make_plan(VICUNA_7B, 24 * GB)(8, 2048)
    assert usual.caches == 8 << 30
    assert not usual.fits


def test_a_larger_card_gets_the_models_own_length() -> None:
    for card, llm_bytes in ((40 * GB, 2.0), (80 * GB, 2.0), (24 * GB, 0.5625)):
        chosen = choose(make_plan(VICUNA_7B, card, llm_bytes=llm_bytes))
        assert chosen is not None
        assert (chosen.slots, chosen.positions) == (8, 2048)


def test_slots_are_given_up_once_sequences_are_short() -> None:
    chosen = choose(make_plan(VICUNA_7B, 20 * GB))
    assert chosen is not None
    assert chosen.slots < 8
    assert chosen.positions >= LEAST_POSITIONS
    assert choose(make_plan(VICUNA_7B, 17 * GB)) is None


def test_what_was_asked_for_stays() -> None:
    make = make_plan(VICUNA_7B, 24 * GB)
    chosen = choose(make, positions=2048)
    assert chosen is not None
    assert (chosen.slots, chosen.positions) == (make(1, 2048).most_slots(), 2048)
    chosen = choose(make, slots=12)
    assert chosen is not None
    assert chosen.slots == 12
    assert choose(make, slots=8, positions=2048) is None
    assert choose(make, slots=40) is None  # each would be shorter than is any use


@pytest.mark.parametrize("name", [VICUNA_7B, T5_XXL])
def test_what_is_advised_fits(name: str) -> None:
    make = make_plan(name, 30 * GB)
    plan = make(64, 2048)
    assert not plan.fits
    pairs = re.findall(r"--slots (\d+) --max-length (\d+)", plan.advice())
    assert pairs
    for slots, positions in pairs:
        assert make(int(slots), int(positions)).fits


def test_without_room_for_weights_no_slots_are_advised() -> None:
    plan = make_plan(T5_XXL, 24 * GB)(8, 512)
    assert plan.room < 0
    assert "--slots" not in plan.advice()
    assert "Everything but keys and values takes" in plan.advice()
    assert "WHICH DOES NOT FIT" in str(plan)


def test_a_pool_takes_what_is_left_and_one_sequence_at_least() -> None:
    make = make_plan(VICUNA_7B, 24 * GB, pooled=True)
    plan = make(64, 2048)
    assert plan.fits
    assert plan.caches == plan.room < plan.full
    assert plan.total == 24 * GB
    small = make(2, 512)
    assert small.caches == small.full < small.room
    tight = make_plan(VICUNA_7B, 18 * GB, pooled=True)(64, 2048)
    assert tight.caches == 2048 * tight.position
    assert not tight.fits


def test_every_byte_of_the_table_is_counted_once() -> None:
    plan = make_plan(VICUNA_7B, 80 * GB)(8, 2048)
    rows = sum(row.weights + row.work + row.process for row in plan.components)
    assert plan.total == rows + plan.caches + plan.reserve
    assert plan.to_json()["total"] == plan.total
    assert [ComponentMemory.from_json(row.to_json()) for row in plan.components] == [
        *plan.components
    ]
    assert all(row.process == CONTEXT for row in plan.components)
    assert VLLM_WORK > CONTEXT


def test_scores_of_attention_grow_with_the_square_of_a_prompt() -> None:
    t5 = Layer(hidden=4096, inner=10240, heads=64, itemsize=4)
    assert t5.work(1, 1024, 1024) > 2 * t5.work(1, 512, 512)
    llama = Layer(hidden=4096, inner=11008, heads=32, itemsize=2)
    assert llama.work(1, 1024, 0) == pytest.approx(2 * llama.work(1, 512, 0), abs=1)


def test_a_card_that_is_not_known_refuses_nothing() -> None:
    plan = MemoryPlan(components=(), position=POSITION[VICUNA_7B], slots=8, positions=2048)
    assert plan.fits
    assert plan.reserve == 0
    assert "of an unknown card: 8.00 GiB" in str(plan)
