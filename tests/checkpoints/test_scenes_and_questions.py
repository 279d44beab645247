"""The pictures and the questions: split, seeds, wordings, and the committed held-out set."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the digits come from scikit-learn (extra: dev)")

from checkpoints.training.digits import FRACTIONS, Split, load_source
from checkpoints.training.heldout import heldout_examples
from checkpoints.training.questions import KINDS, ask
from checkpoints.training.scenes import INK, SIDE, Digit, Scene, draw, random_scene

HELDOUT = Path(__file__).resolve().parents[2] / "checkpoints" / "heldout"


def a_scene(*digits: tuple[int, str, str, int]) -> Scene:
    shown = tuple(Digit(value, colour, size, place, 0) for value, colour, size, place in digits)
    return Scene(shown, "dark", "flat", (72, 72))


def test_no_source_digit_is_in_two_splits() -> None:
    rows = {split: set(load_source(split).indices.tolist()) for split in FRACTIONS}
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 1797


@pytest.mark.parametrize("split", FRACTIONS)
def test_every_split_shows_every_digit(split: Split) -> None:
    assert set(load_source(split).labels.tolist()) == set(range(10))


def test_a_seed_names_a_picture() -> None:
    source = load_source("train")
    first, second, other = (
        draw(random_scene(source, rng, 2), source, rng)
        for rng in map(np.random.default_rng, (5, 5, 6))
    )
    assert np.array_equal(first, second)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_the_committed_examples_are_what_the_generator_makes() -> None:
    committed = (HELDOUT / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(committed) == 500
    for line, example in zip(committed, heldout_examples(), strict=True):
        assert line == example.as_json()
        with Image.open(HELDOUT / json.loads(line)["image"]) as image:
            stored = np.asarray(image.convert("RGB")).astype(int)
        # One level of slack: another machine's sine may round a pixel the other way.
        assert np.abs(stored - example.pixels.astype(int)).max() <= 1


def test_held_out_answers_depend_on_the_picture() -> None:
    lines = (HELDOUT / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    answers: dict[str, set[str]] = {}
    for record in map(json.loads, lines):
        answers.setdefault(record["kind"], set()).add(record["answer"])
    assert set(answers) == set(KINDS)
    assert all(len(given) >= 2 for given in answers.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_several_wordings_and_each_one_form_of_answer(kind: str) -> None:
    prompts = [prompt for prompt, _ in KINDS[kind].wordings]
    assert len(prompts) == len(set(prompts)) >= 2


def test_a_prompt_about_a_scene_has_one_answer() -> None:
    source = load_source("train")
    rng = np.random.default_rng(3)
    for count in (1, 2, 3) * 10:
        scene = random_scene(source, rng, count)
        answers: dict[str, str] = {}
        for kind in KINDS:
            for question in filter(None, (ask(kind, scene, rng) for _ in range(20))):
                assert answers.setdefault(question.prompt, question.answer) == question.answer


def test_digits_of_a_questioned_scene_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = [digit.value for digit in random_scene(load_source("train"), rng, 3).digits]
        assert len(set(values)) == 3


def test_which_is_larger_is_asked_only_where_it_shows() -> None:
    alike = a_scene((3, "red", "large", 0), (4, "red", "large", 1))
    apart = a_scene((3, "red", "small", 0), (4, "red", "large", 1))
    rng = np.random.default_rng(0)
    assert ask("larger", alike, rng) is None
    question = ask("larger", apart, rng)
    assert question is not None
    assert question.short == "4"
    assert SIDE["large"][0] > 1.3 * SIDE["small"][1]


def test_a_colour_that_two_digits_share_names_neither() -> None:
    rng = np.random.default_rng(0)
    shared = a_scene((3, "red", "small", 0), (4, "red", "large", 1))
    assert ask("digit_of_colour", shared, rng) is None
    partly = a_scene((3, "red", "small", 0), (4, "red", "large", 1), (5, "blue", "large", 2))
    for question in islice((ask("digit_of_colour", partly, rng) for _ in range(20)), 20):
        assert question is not None
        assert question.short == "5"


@pytest.mark.parametrize("tone", ["dark", "light"])
def test_ink_stands_out_from_its_ground(tone: str) -> None:
    source = load_source("train")
    drawn = [(rng, random_scene(source, rng, 3)) for rng in map(np.random.default_rng, range(20))]
    scenes = [(rng, scene) for rng, scene in drawn if scene.tone == tone]
    assert len(scenes) >= 5  # of twenty: each tone is as likely as the other
    for rng, scene in scenes:
        assert {digit.colour for digit in scene.digits} <= set(INK[tone])
        ground = draw(Scene((), tone, scene.pattern, scene.canvas), source, rng)
        assert (ground.mean() < 128) == (tone == "dark")
