"""A few examples for the report: the image, the question, and everybody's answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from iblip.serving.parity.report import Sample
from iblip.serving.parity.subjects import Original, Subject

SAMPLES = 6
"""Most samples of a report."""

SIDE = 144
"""Longest side of a sample's image, in pixels."""


def samples_of(original: Original, subjects: Sequence[Subject]) -> tuple[Sample, ...]:
    """Examples whose answers differ, and then others, evenly spread.

    Args:
        original: the checkpoint's side; its examples may be none.
        subjects: the builds, which have answered all of its examples.
    """
    examples = original.examples
    if not examples:
        return ()
    expected = original.texts("text", subjects[0].positions)
    answers = list(zip(*(subject.answers("text") for subject in subjects), strict=True))
    differ = [i for i, texts in enumerate(answers) if any(t != expected[i] for t in texts)]
    step = max(1, len(examples) // SAMPLES)
    order = dict.fromkeys([*differ, *range(0, len(examples), step)])
    return tuple(
        Sample(
            example=examples[i].name,
            prompt=examples[i].prompt,
            image=thumbnail(examples[i].image),
            reference=expected[i],
            texts=answers[i],
            answer=examples[i].answer,
        )
        for i in list(order)[:SAMPLES]
    )


def thumbnail(path: Path) -> str:
    """A copy of an image of at most `SIDE` pixels a side, as a `data:` address."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
