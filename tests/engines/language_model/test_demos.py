"""The demo checkpoints' fp32 builds: the benchmarks' own comparisons, on fewer examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import beams, crowd
from benchmarks.reference import Reference
from checkpoints import DEMOS
from iblip.engines.pipeline import Pipeline
from iblip.export.examples import read_examples


@pytest.fixture(scope="module", params=DEMOS)
def demo(
    request: pytest.FixtureRequest, checkpoints: Path, demo_build: Callable[[str], Path]
) -> tuple[Path, Path]:
    """A checkpoint and its build."""
    return checkpoints / request.param, demo_build(request.param)


def test_five_beams_are_those_of_transformers(
    demo: tuple[Path, Path], pytestconfig: pytest.Config
) -> None:
    checkpoint, build = demo
    limit = 40 if pytestconfig.getoption("every_example") else 12
    examples = read_examples(checkpoint / "examples", limit)
    ways: list[dict[str, Any]] = [
        {"length_penalty": 1.0},
        {"length_penalty": -1.0, "early_stopping": True},
    ]
    reference = Reference(checkpoint)
    with Pipeline(build) as pipeline:
        for way in ways:
            found = beams.compare(pipeline, reference, examples, {"num_beams": 5, **way})
            assert found["different"] == []
            assert found["same_tokens"] == len(examples)
            assert found["largest_difference_of_scores"] < 1e-3  # of sums times lengths


def test_an_answer_is_the_same_alone_and_among_sixteen(demo: tuple[Path, Path]) -> None:
    checkpoint, build = demo
    examples = read_examples(checkpoint / "examples", 6)
    found = crowd.compare(build, examples)
    assert found == {name: {"requests": 6, "same_tokens": 6} for name in crowd.WAYS}
