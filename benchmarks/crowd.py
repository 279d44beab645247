"""The same requests alone and sixteen at a time: how many get the same tokens, by precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.builds import PRECISIONS, build
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, GenerationRequest, LanguageModelEngine
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image

AT_ONCE = 16
EXAMPLES = 50

WAYS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.95},
    "sampled, of all kinds": {"temperature": 4.0, "min_new_tokens": 20, "max_new_tokens": 40},
    "three answers": {"temperature": 2.0, "n": 3, "max_new_tokens": 12},
    "five beams": {"num_beams": 5},
    "ranked": {"candidates": ["red", "a 3", *map(str, range(40))]},
}
"""Options by name; those that sample also get a seed."""


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Figures by precision."""
    examples = read_examples(checkpoint / "examples", EXAMPLES)
    return {
        precision: compare(build(checkpoint, scratch, precision), examples)
        for precision in PRECISIONS
    }


def compare(directory: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """How many requests have the same tokens in every answer, by kind of options.

    Args:
        directory: of the build.
        examples: each is asked with every kind of options; neighbours in the queue differ.
    """
    manifest = Manifest.read(directory)
    names = [name for _ in examples for name in WAYS]
    requests = _requests(directory, examples)
    limits = EngineLimits(slots=AT_ONCE, queue=len(requests))
    with closing(open_engine(directory, manifest, limits=limits)) as engine:
        alone = [_token_ids(engine.submit(request).result()) for request in requests]
        crowd = _in_a_crowd(engine, requests)
    same = [a == b for a, b in zip(alone, crowd, strict=True)]
    return {
        name: {
            "requests": len(examples),
            "same_tokens": sum(
                equal for equal, other in zip(same, names, strict=True) if other == name
            ),
        }
        for name in WAYS
    }


def _requests(directory: Path, examples: Sequence[Example]) -> list[GenerationRequest]:
    requests: list[GenerationRequest] = []
    with Pipeline(directory) as pipeline:
        for example in examples:
            pixels = pixels_from_image(example.image, pipeline.manifest.preprocessing)
            embeds = pipeline.encode_image(pixels[None])
            visual_prompt = pipeline.visual_prompt(embeds, [example.prompt])
            for options in WAYS.values():
                seed = {"seed": len(requests)} if "temperature" in options else {}
                requests.append(
                    GenerationRequest(
                        prompt=example.prompt,
                        visual_prompt=visual_prompt,
                        options=GenerationOptions.from_mapping({**options, **seed}),
                    )
                )
    return requests


def _in_a_crowd(
    engine: LanguageModelEngine, requests: Sequence[GenerationRequest]
) -> list[tuple[tuple[int, ...], ...]]:
    """All are queued at once; their lengths differ, so they join and leave at many steps."""
    return [_token_ids(generation.result()) for generation in [engine.submit(r) for r in requests]]


def _token_ids(answer: Answer) -> tuple[tuple[int, ...], ...]:
    """The tokens of every answer, or of every candidate of a ranking in its order."""
    if answer.ranking:
        return tuple(candidate.token_ids for candidate in answer.ranking)
    return tuple(completion.token_ids for completion in (answer, *answer.others))
