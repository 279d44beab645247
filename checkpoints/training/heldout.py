"""The held-out set: 500 images of handwriting that no training image showed, one question each.

`examples.jsonl` holds one JSON object a line: `id`, `image` (relative to that file), `kind`,
`prompt` and `answer`. Where a family's users write their questions otherwise, a sibling directory
holds the same questions in those words, about the same images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .digits import load_source
from .prompts import FORMS, Form
from .questions import KINDS, Question, ask
from .scenes import Pixels, draw, random_scene

HELDOUT_SEED = 501
COUNT = 500


@dataclass(frozen=True)
class Example:
    """One held-out example: `pixels` are uint8 `[height, width, 3]`."""

    name: str
    pixels: Pixels
    question: Question

    def as_json(self, images: str = "images") -> str:
        """The example's line in `examples.jsonl`, its image in `images`."""
        record = {
            "id": self.name,
            "image": f"{images}/{self.name}.webp",
            "kind": self.question.kind,
            "prompt": self.question.prompt,
            "answer": self.question.answer,
        }
        return json.dumps(record)


def heldout_examples(count: int = COUNT) -> Iterator[Example]:
    """Generate the examples; kinds take turns, and the seed fixes everything."""
    source = load_source("heldout")
    kinds = list(KINDS)
    for number in range(count):
        rng = np.random.default_rng([HELDOUT_SEED, number])
        kind = kinds[number % len(kinds)]
        question = None
        while question is None:
            scene = random_scene(source, rng, int(rng.choice(KINDS[kind].counts)))
            question = ask(kind, scene, rng)
        yield Example(f"heldout-{number:03d}", draw(scene, source, rng), question)


def write_heldout(directory: Path, count: int = COUNT) -> int:
    """Write the held-out set into `directory`, and BLIP-2's wording of it into its sibling.

    Returns:
        Bytes that the images take.
    """
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    blip2 = directory.with_name(f"{directory.name}-blip2")
    blip2.mkdir(exist_ok=True)
    lines, put, size = [], [], 0
    for example in heldout_examples(count):
        path = images / f"{example.name}.webp"
        Image.fromarray(example.pixels).save(path, lossless=True, quality=100, method=6)
        size += path.stat().st_size
        lines.append(example.as_json())
        put.append(put_as(FORMS["blip2-t5"], example).as_json(f"../{directory.name}/images"))
    for into, every in ((directory, lines), (blip2, put)):
        (into / "examples.jsonl").write_text("\n".join(every) + "\n", encoding="utf-8")
    return size


def put_as(form: Form, example: Example) -> Example:
    """The same example, asked as a form's users ask."""
    return replace(example, question=form.put(example.question))
