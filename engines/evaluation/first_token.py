"""A build's logits of the first token, by the road that a request takes, and the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iblip.engines.language_model.onnx.graphs import open_model
from iblip.engines.language_model.onnx.slots import BatchModel
from iblip.engines.runners import open_runner
from iblip.engines.text.instructions import InstructionTokenizer
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.types import Runner
from iblip.export.artifact.manifest import Manifest
from iblip.export.images import pixels_from_image
from iblip.export.progress import Advance

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """One example's first token.

    Attributes:
        name: of the example.
        divergence: Kullback-Leibler, of the build's distribution from the reference's, in nats.
        same: whether the likeliest token is the same.
        max_abs: largest difference of a logit.
    """

    name: str
    divergence: float
    same: bool
    max_abs: float


def first_logits(
    directory: Path,
    manifest: Manifest,
    asked: Sequence[tuple[Image.Image, str]],
    advance: Advance,
) -> Array:
    """Float32 `[len(asked), vocab]`: decode, resize, tokenise, all components, and no more.

    Args:
        directory: of the build.
        manifest: of the same build, on ONNX Runtime.
        asked: pictures and prompts.
        advance: told of each.
    """
    rows = []
    with ExitStack() as stack:
        vision, qformer = (
            stack.enter_context(open_runner(directory, manifest, name))
            for name in ("vision_encoder", "qformer")
        )
        model = open_model(directory, manifest, slots=1)
        stack.callback(model.close)
        prompts = PromptTokenizer.from_build(directory, manifest)
        instructions = InstructionTokenizer.from_build(directory, manifest)
        for image, prompt in asked:
            pixels = pixels_from_image(image, manifest.preprocessing)
            embeds = vision.infer({"pixels": pixels[None]})["image_embeds"]
            visual_prompt = _visual_prompt(qformer, instructions, embeds, prompt)
            read = model.read(visual_prompt, prompts(prompt))
            rows.append(_first(model, read))
            advance(1)
    return np.stack(rows)


def compare_first_tokens(names: Sequence[str], found: Array, wanted: Array) -> list[FirstToken]:
    """Row by row.

    Args:
        names: of the examples.
        found, wanted: logits `[len(names), vocab]` of the build and of the reference.
    """
    p, q = _log_softmax(wanted), _log_softmax(found)
    divergences = (np.exp(p) * (p - q)).sum(axis=1)
    return [
        FirstToken(
            name=name,
            divergence=max(float(divergence), 0.0),  # roundings may leave it just below
            same=bool(a.argmax() == b.argmax()),
            max_abs=float(np.abs(a - b).max()),
        )
        for name, divergence, a, b in zip(names, divergences, found, wanted, strict=True)
    ]


def _visual_prompt(
    qformer: Runner, instructions: InstructionTokenizer | None, embeds: Array, prompt: str
) -> Array:
    text = {} if instructions is None else instructions(prompt)
    return qformer.infer({"image_embeds": embeds, **text})["visual_prompt"]


def _first(model: BatchModel, prompt: Any) -> Array:
    """Reads a prompt into a slot of its own, and leaves the slot."""
    slot = model.acquire()
    logits = model.prefill(slot, prompt, prompt.positions)
    if logits is None:  # T5 has only encoded
        assert model.start_token is not None
        logits = model.step({slot: model.start_token})[0]
    copy: Array = np.array(logits, np.float32)
    model.release(slot)
    return copy


def _log_softmax(logits: Array) -> Array:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    scores: Array = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return scores
