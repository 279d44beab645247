"""The demos answer as LAVIS and transformers do: the benchmark's comparison, on fewer examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.originals import Original, compare
from engines.pipeline import Pipeline
from export.examples import Example, read_examples

EXAMPLES = 40


@pytest.fixture(scope="module", params=["vicuna", "flant5"])
def demo(request: pytest.FixtureRequest, checkpoints: Path) -> tuple[Path, Path]:
    """A checkpoint and its build."""
    build: Path = request.getfixturevalue(f"{request.param}_build")
    return checkpoints / f"instructblip-demo-{request.param}", build


def test_the_demos_answer_as_the_originals(demo: tuple[Path, Path]) -> None:
    checkpoint, build = demo
    with Pipeline(build) as pipeline:
        examples = [*read_examples(checkpoint / "examples", EXAMPLES - 2), *longest(checkpoint)]
        found = compare(pipeline, Original(checkpoint), examples)
    assert {name: call.get("different") for name, call in found.items()} == {
        "lavis generate": [],
        "lavis predict_answers": [],
        "hf generate": [],
        "lavis predict_class": None,
    }
    ranks = found["lavis predict_class"]
    assert ranks["same_order"] == EXAMPLES
    assert ranks["largest_difference_of_losses"] < 1e-3


def longest(checkpoint: Path) -> list[Example]:
    """Prompts of which LAVIS's Q-Former reads the end alone, at 128 tokens."""
    first, second = read_examples(checkpoint / "examples", 2)
    return [
        replace(example, prompt="Look at the image. " * 30 + example.prompt)
        for example in (first, second)
    ]
