"""A build's logits of the first token, computed as for a request, compared with the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iblip.engines.language_model.onnx.opening import open_model
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
        divergence: Kullback-Leibler divergence of the build's distribution from the reference's, in
            nats.
        same: whether the most likely token is the same.
        max_abs: the largest absolute difference of a logit.
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
    """The build's logits of each first token, float32 `[len(asked), vocab]`.

    Args:
        directory: of the build.
        manifest: of the same build, on ONNX Runtime.
        asked: images and their prompts.
        advance: called after each.
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
            visual_prompt = _run_qformer(qformer, instructions, embeds, prompt)
            read = model.read(visual_prompt, prompts(prompt))
            rows.append(_read_first_logits(model, read))
            advance(1)
    return np.stack(rows)


def compare_first_tokens(names: Sequence[str], logits: Array, reference: Array) -> list[FirstToken]:
    """Compares the logits of the build and of the reference, one `FirstToken` per example.

    Args:
        names: of the examples.
        logits, reference: `[len(names), vocab]`, of the build and of the reference.
    """
    p, q = _log_softmax(reference), _log_softmax(logits)  # [len(names), vocab]
    divergences = (np.exp(p) * (p - q)).sum(axis=1)
    return [
        FirstToken(
            name=name,
            divergence=max(float(divergence), 0.0),  # rounding may leave it just below 0
            same=bool(a.argmax() == b.argmax()),
            max_abs=float(np.abs(a - b).max()),
        )
        for name, divergence, a, b in zip(names, divergences, logits, reference, strict=True)
    ]


def _run_qformer(
    qformer: Runner, instructions: InstructionTokenizer | None, embeds: Array, prompt: str
) -> Array:
    text = {} if instructions is None else instructions(prompt)
    return qformer.infer({"image_embeds": embeds, **text})["visual_prompt"]


def _read_first_logits(model: BatchModel, prompt: Any) -> Array:
    """Reads a prompt into a slot, then frees the slot; returns the logits `[vocab]`, float32."""
    slot = model.acquire()
    logits = model.prefill({slot: prompt}, prompt.positions)[slot]
    if logits is None:  # T5 has only encoded
        assert model.start_token is not None
        logits = model.step({slot: model.start_token})[0]
    copy: Array = np.array(logits, np.float32)  # [vocab]
    model.release(slot)
    return copy


def _log_softmax(logits: Array) -> Array:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    scores: Array = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return scores
