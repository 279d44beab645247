"""Greedy text of a build against `transformers.generate`, over a set of examples.

The build runs whole, on ONNX Runtime in this process: decode, resize, components, generation loop,
detokenisation. The reference runs whole too, by transformers from the checkpoint in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.language_model.types import GenerationOptions
from engines.pipeline import Pipeline
from export.checkpoint import Checkpoint
from export.examples import Example
from export.images import pixels_from_image
from export.manifest import EngineRecord, Manifest
from export.progress import Advance, Progress

AGREEMENT: Mapping[str, float] = {"fp32": 1.0, "fp16": 0.99, "int4": 0.95}
"""By precision: the smallest share of examples whose text must equal transformers'."""

REFERENCE_BATCH = 32
"""Examples of one length that the reference answers at once."""


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """What the comparison found. True where enough texts agree.

    Attributes:
        examples: how many were asked.
        same: how many texts equal the reference's, to the character.
        wanted: the smallest share that must.
        right, reference_right: how many equal the example's answer, white space at the ends aside;
            `None` where examples have none.
        different: `{"example", "prompt", "text", "reference"}` of the first few that differ.
    """

    examples: int
    same: int
    wanted: float
    right: int | None
    reference_right: int | None
    different: tuple[Mapping[str, str], ...]

    def __bool__(self) -> bool:
        return self.same >= self.wanted * self.examples

    def to_json(self) -> dict[str, Any]:
        """Counts and shares, JSON-ready."""
        report: dict[str, Any] = {
            "passed": bool(self),
            "examples": self.examples,
            "same_text": self.same,
            "agreement": self.same / self.examples,
            "wanted_agreement": self.wanted,
        }
        if self.right is not None and self.reference_right is not None:
            report["exact_match"] = self.right / self.examples
            report["reference_exact_match"] = self.reference_right / self.examples
        return {**report, "different": list(self.different)}


def verify_text(
    directory: Path, checkpoint: Checkpoint, examples: Sequence[Example], progress: Progress
) -> TextReport:
    """Compares every example's greedy text with transformers'.

    Args:
        directory: of the build. Its ONNX graphs are run, whatever engine it was built for.
        checkpoint: what it was built from.
        examples: what is asked.
        progress: told of each answer.
    """
    manifest = Manifest.read(directory)
    limit = manifest.language_model.default_max_new_tokens
    with progress.stage("ask the build", len(examples), "questions") as advance:
        texts = _build_texts(directory, manifest, examples, limit, advance)
    with progress.stage("ask transformers", len(examples), "questions") as advance:
        reference = _reference_texts(checkpoint, manifest, examples, limit, advance)
    pairs = list(zip(examples, texts, reference, strict=True))
    has_answers = all(example.answer is not None for example in examples)
    return TextReport(
        examples=len(examples),
        same=sum(text == wanted for _, text, wanted in pairs),
        wanted=min(AGREEMENT[record.precision] for record in manifest.components.values()),
        right=sum(e.is_right(text) for e, text, _ in pairs) if has_answers else None,
        reference_right=sum(e.is_right(text) for e, _, text in pairs) if has_answers else None,
        different=tuple(
            {"example": e.name, "prompt": e.prompt, "text": text, "reference": wanted}
            for e, text, wanted in pairs
            if text != wanted
        )[:10],
    )


def on_onnxruntime(manifest: Manifest) -> Manifest:
    """The same build with every component run from its ONNX graphs."""
    components = {
        name: replace(
            record,
            engine=EngineRecord(
                kind="onnxruntime", files={key: graph.path for key, graph in record.graphs.items()}
            ),
        )
        for name, record in manifest.components.items()
    }
    return replace(manifest, components=components)


def _build_texts(
    directory: Path,
    manifest: Manifest,
    examples: Sequence[Example],
    limit: int,
    advance: Advance,
) -> list[str]:
    options = GenerationOptions(max_new_tokens=limit)
    texts = []
    with Pipeline(directory, manifest=on_onnxruntime(manifest)) as pipeline:
        for example in examples:
            pixels = pixels_from_image(example.image, manifest.preprocessing)
            texts.append(pipeline.answer(pixels, example.prompt, options).text)
            advance(1)
    return texts


def _reference_texts(
    checkpoint: Checkpoint,
    manifest: Manifest,
    examples: Sequence[Example],
    limit: int,
    advance: Advance,
) -> list[str]:
    from PIL import Image

    from export.verification.cases import load_reference

    model, processor = load_reference(checkpoint), checkpoint.processor
    facts = manifest.language_model
    ask: Any = processor
    texts: dict[int, str] = {}
    for batch in equally_long(ask, examples):
        images = [Image.open(examples[i].image) for i in batch]
        prompts = [examples[i].prompt for i in batch]
        inputs = ask(images=images, text=prompts, return_tensors="pt")
        ids = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=list(facts.eos_token_ids),
        )
        if not facts.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        answers = [_before_end(row, facts.eos_token_ids) for row in ids.tolist()]
        decoded = ask.tokenizer.batch_decode(answers, skip_special_tokens=True)
        texts.update(zip(batch, decoded, strict=True))
        advance(len(batch))
    return [texts[i] for i in range(len(examples))]


def _before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """An answer without what ended it: BLIP-2's is a line break, which is no special token."""
    return list(takewhile(lambda token: token not in ends, ids))


def equally_long(processor: Any, examples: Sequence[Example]) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of examples whose prompts are equally long in every tokenizer: no padding.

    Padding on the left, which transformers would do, changes its answers.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        text = processor(text=example.prompt)
        lengths = (len(text[name][0]) for name in text if name.endswith("input_ids"))
        groups[tuple(lengths)].append(i)
    for indices in groups.values():
        for start in range(0, len(indices), REFERENCE_BATCH):
            yield np.array(indices[start : start + REFERENCE_BATCH])
