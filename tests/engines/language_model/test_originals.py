"""The demos answer as LAVIS and transformers do: the benchmark's comparison, on fewer examples.

`transformers_4_33.json` has, by checkpoint and call, the tokens of the first examples' answers as
transformers 4.33.2 gives them, a version that LAVIS runs with: its own LLaMA and T5 with the
checkpoint's weights, asked with embeddings alone and LAVIS's arguments (`max_length` 256 and 10 on
LLaMA, the same as `max_new_tokens` on T5). They are without the start token and the closing one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.originals import Original, compare
from iblip.engines.language_model.presets import preset
from iblip.engines.pipeline import Pipeline
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image

EXAMPLES, FEW = 40, 12
"""That are asked with `--every-example`, and without."""


@pytest.fixture(scope="module", params=["vicuna", "flant5"])
def demo(request: pytest.FixtureRequest, checkpoints: Path) -> tuple[Path, Path]:
    """A checkpoint and its build."""
    build: Path = request.getfixturevalue(f"{request.param}_build")
    return checkpoints / f"instructblip-demo-{request.param}", build


def test_the_demos_answer_as_the_originals(
    demo: tuple[Path, Path], pytestconfig: pytest.Config
) -> None:
    checkpoint, build = demo
    count = EXAMPLES if pytestconfig.getoption("every_example") else FEW
    with Pipeline(build) as pipeline:
        examples = [*read_examples(checkpoint / "examples", count - 2), *longest(checkpoint)]
        found = compare(pipeline, Original(checkpoint), examples)
    assert {name: call.get("different") for name, call in found.items()} == {
        "lavis generate": [],
        "lavis predict_answers": [],
        "hf generate": [],
        "lavis predict_class": None,
    }
    ranks = found["lavis predict_class"]
    assert ranks["same_order"] == count
    assert ranks["largest_difference_of_losses"] < 1e-3


def test_lavis_answers_with_the_tokens_of_its_own_transformers(demo: tuple[Path, Path]) -> None:
    checkpoint, build = demo
    recorded = json.loads((Path(__file__).parent / "transformers_4_33.json").read_text())
    with Pipeline(build) as pipeline:
        facts, preprocessing = pipeline.manifest.language_model, pipeline.manifest.preprocessing
        for call, wanted in recorded[checkpoint.name].items():
            found = preset(
                "lavis",
                family=pipeline.manifest.family,
                language_model=facts.architecture,
                call=call,
            )
            options = found.with_options({})
            examples = read_examples(checkpoint / "examples")[: len(wanted)]
            assert len(examples) == 40
            for example, tokens in zip(examples, wanted, strict=True):
                pixels = pixels_from_image(example.image, preprocessing)
                answer = pipeline.answer(pixels, example.prompt, options)
                assert list(answer.token_ids) == tokens, (call, example.name)


def longest(checkpoint: Path) -> list[Example]:
    """Prompts of which LAVIS's Q-Former reads the end alone, at 128 tokens."""
    first, second = read_examples(checkpoint / "examples", 2)
    return [
        replace(example, prompt="Look at the image. " * 30 + example.prompt)
        for example in (first, second)
    ]
