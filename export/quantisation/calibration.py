"""Measures how sensitive each matmul of a checkpoint's graphs is, on images and questions.

The images pass through the traced graphs in float32, component by component, as in serving. See
`export.quantisation.running` for why that takes little memory.
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
from iblip.export.examples import EXAMPLES, check_examples, read_examples
from iblip.export.graph.tracing import Trace
from iblip.export.images import check_image, pixels_from_image
from iblip.export.progress import Progress
from iblip.export.quantisation.matmuls import MatMul, find_matmuls
from iblip.export.quantisation.measuring import Measurements
from iblip.export.quantisation.options import Quantisation
from iblip.export.quantisation.running import Arrays, run_in_pieces
from iblip.export.weights.binding import bind

IMAGES = 16
"""Number of images that are used, spread evenly over all that there are."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Suffixes of the files of a directory that are read as images."""

PROMPT = "What is in the picture?"
"""The question about images that come without one."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, a question about it, and the answer.

    The answer may be empty.
    """

    image: Path
    prompt: str = PROMPT
    answer: str = ""


def measure(
    traces: Sequence[Trace],
    checkpoint: Checkpoint,
    quantisations: Mapping[str, Quantisation],
    progress: Progress,
) -> dict[str, Measurements]:
    """Measures every component that is to be quantised, before its graphs are changed.

    Args:
        traces: of all graphs of the checkpoint.
        checkpoint: whose weights they read.
        quantisations: by component.
        progress: reports each component.

    Returns:
        Measurements by component; empty ones where nothing has to be measured.

    Raises:
        OptionError: activations are to be static, and there is no image.
        InputError: the examples or an image cannot be read.
    """
    measurements = {name: Measurements(quantisation=q) for name, q in quantisations.items()}
    measured = {name for name, quantisation in quantisations.items() if quantisation.is_measured}
    if not measured:
        return measurements
    samples = samples_from(checkpoint, next(iter(quantisations.values())).calibration)
    if not samples:
        for name in sorted(measured):
            _measure_weights(name, traces, checkpoint, measurements[name], progress)
        return measurements
    values = [_Values(sample, checkpoint) for sample in samples]
    for traced in traces:
        name = traced.component.component
        if not measured & {name, *_behind(name)} or traced.component.graph not in GRAPHS:
            continue
        with progress.stage(f"measure {traced.component.title}"):
            target = measurements[name] if name in measured else None
            _measure_on_images(traced, checkpoint, values, target)
    return measurements


GRAPHS = ("model", "embed_tokens", "encoder", "decoder")
"""Graphs that are run. `batched_decoder` has the same matrices as `decoder`."""


def _behind(component: str) -> tuple[str, ...]:
    """Returns the components that come after this one."""
    order = ("vision_encoder", "qformer", "language_model")
    return order[order.index(component) + 1 :]


def samples_from(checkpoint: Checkpoint, directory: Path | None) -> list[Sample]:
    """Returns samples from `directory`, or from the checkpoint's own examples if it has any.

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


def check_samples(checkpoint: Checkpoint, quantisations: Mapping[str, Quantisation]) -> None:
    """Refuses what `measure` would refuse, before any work is done.

    Args:
        checkpoint, quantisations: as `measure` takes them.

    Raises:
        OptionError, InputError: as `measure` does.
    """
    measured = {name: value for name, value in quantisations.items() if value.is_measured}
    if not measured:
        return
    directory = next(iter(quantisations.values())).calibration
    if samples := samples_from(checkpoint, directory):
        source = directory or checkpoint.directory / "examples"
        if (source / EXAMPLES).exists():
            check_examples(source, IMAGES)
        for sample in samples:
            check_image(sample.image)
        return
    for name, quantisation in sorted(measured.items()):
        _refuse_static(name, quantisation, checkpoint)


def _refuse_static(component: str, quantisation: Quantisation, checkpoint: Checkpoint) -> None:
    """Refuses static scales where there is no image to find them on."""
    if quantisation.activations == "static":
        raise OptionError(
            f"the static scales of {component} ({quantisation}) are found on images, and"
            f" {checkpoint.directory} has no examples. Name a directory of images with"
            " --calibration, or choose int8 with --int8 dynamic."
        )


def _measure_weights(
    component: str,
    traces: Sequence[Trace],
    checkpoint: Checkpoint,
    measured: Measurements,
    progress: Progress,
) -> None:
    """Measures without images, which is possible if nothing but weights is quantised."""
    _refuse_static(component, measured.quantisation, checkpoint)
    if measured.quantisation.activations == "dynamic":
        progress.note(f"int8 of {component} is not measured: there are no images (--calibration)")
        return
    for traced in traces:
        if traced.component.component == component and traced.component.graph in GRAPHS:
            recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
            for matmul in find_matmuls(traced.model, recipes):
                measured.observe_weights(matmul)


def _measure_on_images(
    traced: Trace,
    checkpoint: Checkpoint,
    values: Sequence[_Values],
    measured: Measurements | None,
) -> None:
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    feeds = [held.feed(traced.component) for held in values]

    def observe(matmul: MatMul, inputs: Any) -> None:
        if measured is not None:
            measured.observe(matmul, inputs)

    outputs = run_in_pieces(traced.model, recipes, feeds, observe)
    for held, tensors in zip(values, outputs, strict=True):
        held.keep(tensors)
    if measured is not None:
        measured.samples = len(values)


class _Values:
    """The tensors of a sample on its way through the graphs.

    Args:
        sample: what they are computed from.
        checkpoint: whose processor prepares the image and the text.
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
        template = checkpoint.prompt_template.replace("{image}", "")
        prompt = processor.tokenizer(template.replace("{prompt}", sample.prompt))["input_ids"]
        answer = processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        if config.is_encoder_decoder:
            answer = [config.decoder_start_token_id, *answer]
        self._hold("input_ids", [*prompt, *answer])
        # Number of tokens that an encoder reads, and the decoder does not.
        self._encoded = len(prompt) if config.is_encoder_decoder else 0

    def _hold(self, name: str, ids: Sequence[int]) -> None:
        self._held[name] = np.array([ids], np.int64)

    def feed(self, component: Component) -> Arrays:
        """Returns the inputs of a graph, in its dtypes."""
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
        """Returns the embeddings that a graph reads: the prompt's, the answer's, or both."""
        embeds, visual_prompt = self._held["inputs_embeds"], self._held["visual_prompt"]
        if not self._encoded:
            return np.concatenate([visual_prompt, embeds], axis=1)
        if graph == "decoder":
            return embeds[:, self._encoded :]
        return np.concatenate([visual_prompt, embeds[:, : self._encoded]], axis=1)

    def keep(self, outputs: Arrays) -> None:
        """Adds the outputs of a graph, for those that come after it."""
        self._held |= outputs
