"""Measures how sensitive each product of a checkpoint's graphs is, on images and what is asked.

The images go through the traced graphs in float32, component by component, as they would when they
are served. See `export.quantisation.running` for why that takes little memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import TensorSpec
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.facts import preprocessing
from iblip.export.components.component import Component
from iblip.export.errors import OptionError
from iblip.export.examples import EXAMPLES, read_examples
from iblip.export.graph.tracing import Trace
from iblip.export.images import pixels_from_image
from iblip.export.progress import Progress
from iblip.export.quantisation.measuring import Measurements
from iblip.export.quantisation.options import Quantisation
from iblip.export.quantisation.products import Product, products
from iblip.export.quantisation.running import Arrays, run_in_pieces
from iblip.export.weights.binding import bind

IMAGES = 16
"""Images that are looked at, spread over all that there are."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Of the files of a directory that are taken for images."""

PROMPT = "What is in the picture?"
"""Asked of images that come without questions."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, what is asked of it, and what is said."""

    image: Path
    prompt: str = PROMPT
    answer: str = ""


def measure(
    traces: Sequence[Trace],
    checkpoint: Checkpoint,
    quantisations: Mapping[str, Quantisation],
    progress: Progress,
) -> dict[str, Measurements]:
    """What there is to know of every component that is quantised, before its graphs are changed.

    Args:
        traces: of all graphs of the checkpoint.
        checkpoint: whose weights they want.
        quantisations: by component.
        progress: told of each component.

    Raises:
        OptionError: static activations are asked for, and there is no image.
        InputError: the examples or an image cannot be read.
    """
    found = {name: Measurements(quantisation=given) for name, given in quantisations.items()}
    wanted = {name for name, given in quantisations.items() if given.is_measured}
    if not wanted:
        return found
    samples = samples_from(checkpoint, next(iter(quantisations.values())).calibration)
    if not samples:
        for name in sorted(wanted):
            _without_images(name, traces, checkpoint, found[name], progress)
        return found
    values = [_Values(sample, checkpoint) for sample in samples]
    for traced in traces:
        name = traced.component.component
        if not wanted & {name, *_behind(name)} or traced.component.graph not in GRAPHS:
            continue
        with progress.stage(f"measure {traced.component.title}"):
            _on_images(traced, checkpoint, values, found.get(name) if name in wanted else None)
    return found


GRAPHS = ("model", "embed_tokens", "encoder", "decoder")
"""Graphs that are run. What `batched_decoder` multiplies by is in `decoder` too."""


def _behind(component: str) -> tuple[str, ...]:
    """The components that take what this one makes."""
    order = ("vision_encoder", "qformer", "language_model")
    return order[order.index(component) + 1 :]


def samples_from(checkpoint: Checkpoint, directory: Path | None) -> list[Sample]:
    """Images of `directory`, or of the checkpoint's own examples; none where it has none.

    Raises:
        OptionError: the directory has no image.
    """
    source = directory or checkpoint.directory / "examples"
    if (source / EXAMPLES).exists():
        return [
            Sample(image=e.image, prompt=e.prompt, answer=e.answer or "")
            for e in read_examples(source, IMAGES)
        ]
    if directory is None:
        return []
    files = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise OptionError(
            f"--calibration {directory} has no image ({', '.join(SUFFIXES)}) and no {EXAMPLES}"
        )
    chosen = np.linspace(0, len(files) - 1, min(IMAGES, len(files))).round().astype(int)
    return [Sample(image=files[index]) for index in chosen]


def _without_images(
    component: str,
    traces: Sequence[Trace],
    checkpoint: Checkpoint,
    measured: Measurements,
    progress: Progress,
) -> None:
    """Weights alone are looked at, where nothing but weights is quantised."""
    if measured.quantisation.activations == "static":
        raise OptionError(
            f"the static scales of {component} ({measured.quantisation}) are found on images, and"
            f" {checkpoint.directory} has no examples. Name a directory of images with"
            " --calibration, or choose int8 with --int8 dynamic."
        )
    if measured.quantisation.activations == "dynamic":
        progress.note(f"int8 of {component} is not measured: there are no images (--calibration)")
        return
    for traced in traces:
        if traced.component.component == component and traced.component.graph in GRAPHS:
            recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
            for product in products(traced.model, recipes):
                measured.look_at(product)


def _on_images(
    traced: Trace,
    checkpoint: Checkpoint,
    values: Sequence[_Values],
    measured: Measurements | None,
) -> None:
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    feeds = [held.feed(traced.component) for held in values]

    def observe(product: Product, inputs: Any) -> None:
        if measured is not None:
            measured.observe(product, inputs)

    for held, made in zip(
        values, run_in_pieces(traced.model, recipes, feeds, observe), strict=True
    ):
        held.keep(made)
    if measured is not None:
        measured.samples = len(values)


class _Values:
    """What a sample is on its way through the graphs.

    Args:
        sample: where it begins.
        checkpoint: whose processor reads it.
    """

    def __init__(self, sample: Sample, checkpoint: Checkpoint) -> None:
        processor, config = checkpoint.processor, checkpoint.config.text_config
        self._held: Arrays = {
            "pixels": pixels_from_image(sample.image, preprocessing(checkpoint))[None]
        }
        if checkpoint.projector == "instruction_qformer":
            self._hold("qformer_input_ids", processor.qformer_tokenizer(sample.prompt)["input_ids"])
            shape = self._held["qformer_input_ids"].shape
            self._held["qformer_attention_mask"] = np.ones(shape, np.int64)
        asked = checkpoint.prompt_template.replace("{image}", "").replace("{prompt}", sample.prompt)
        text = processor.tokenizer(asked)["input_ids"]
        said = processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        if config.is_encoder_decoder:
            said = [config.decoder_start_token_id, *said]
        self._hold("input_ids", [*text, *said])
        # Tokens that the decoder is not given: an encoder reads them.
        self._encoded = len(text) if config.is_encoder_decoder else 0

    def _hold(self, name: str, ids: Sequence[int]) -> None:
        self._held[name] = np.array([ids], np.int64)

    def feed(self, component: Component) -> Arrays:
        """The inputs of a graph."""
        return {
            spec.name: self._input(component.graph, spec).astype(spec.numpy_dtype)
            for spec in component.contract.inputs
        }

    def _input(self, graph: str, spec: TensorSpec) -> npt.NDArray[Any]:
        if spec.name == "inputs_embeds":
            return self._embeds(graph)
        if spec.name.startswith("past_key_values"):
            sizes = {"batch": 1, "past": 0}
            return np.zeros([axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes])
        if spec.name == "encoder_attention_mask":
            return np.ones(self._embeds("encoder").shape[:2])
        if spec.name == "attention_mask":
            return np.ones(self._embeds(graph).shape[:2])
        if spec.name == "position_ids":
            return np.arange(self._embeds(graph).shape[1])[None]
        return self._held[spec.name]

    def _embeds(self, graph: str) -> npt.NDArray[Any]:
        """Of all tokens; of an encoder-decoder, of those before the answer or from it on."""
        embeds, picture = self._held["inputs_embeds"], self._held["visual_prompt"]
        if not self._encoded:
            return np.concatenate([picture, embeds], axis=1)
        if graph == "decoder":
            return embeds[:, self._encoded :]
        return np.concatenate([picture, embeds[:, : self._encoded]], axis=1)

    def keep(self, made: Arrays) -> None:
        """Takes what a graph has made."""
        self._held |= made
