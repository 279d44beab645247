"""Beam search against `transformers.generate`, token for token, over all held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from benchmarks.reference import Reference
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image

LAVIS: Mapping[str, Any] = {"num_beams": 5, "length_penalty": 1.0}
"""As LAVIS answers."""

WAYS: Sequence[tuple[Mapping[str, Any], int | None]] = (
    (LAVIS, None),
    ({**LAVIS, "length_penalty": 0.0}, None),
    ({**LAVIS, "length_penalty": -1.0}, None),
    ({**LAVIS, "early_stopping": True}, 100),
    ({**LAVIS, "early_stopping": "never"}, 100),
    ({**LAVIS, "early_stopping": "never", "length_penalty": 2.0}, 100),
)
"""Options, and how many examples are asked with them; `None` is all of them."""

MAX_TOKENS = 64
"""Most tokens of an answer: more than any right answer of the demos has."""


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """How many answers of the fp32 build are the same, by options; and how the others differ."""
    reference = Reference(checkpoint)
    figures = {}
    with Pipeline(build(checkpoint, scratch)) as pipeline:
        for options, limit in WAYS:
            examples = read_examples(checkpoint / "examples", limit)
            name = ", ".join(f"{key} {value}" for key, value in options.items())
            figures[name] = compare(pipeline, reference, examples, options)
    return figures


def compare(
    pipeline: Pipeline,
    reference: Reference,
    examples: Sequence[Example],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Asks both the same questions.

    Args:
        pipeline: the build.
        reference: the checkpoint it was built from.
        examples: the questions.
        options: of the beam search, by the names they have in both.
    """
    expected = reference.token_ids(examples, max_new_tokens=MAX_TOKENS, **options)
    settings = GenerationOptions(max_new_tokens=MAX_TOKENS, **options)
    preprocessing = pipeline.manifest.preprocessing
    answers = [
        pipeline.answer(pixels_from_image(example.image, preprocessing), example.prompt, settings)
        for example in examples
    ]
    pairs = [
        (example, answer, ids, answer.score - score)
        for example, answer, (ids, score) in zip(examples, answers, expected, strict=True)
        if answer.score is not None
    ]
    different = [
        {"example": example.name, "difference_of_scores": difference}
        for example, answer, ids, difference in pairs
        if answer.token_ids != ids
    ]
    return {
        "examples": len(examples),
        "same_tokens": len(pairs) - len(different),
        "largest_difference_of_scores": max(abs(difference) for *_, difference in pairs),
        "different": different,
    }
