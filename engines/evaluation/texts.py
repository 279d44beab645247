"""Compares a build's texts with `transformers.generate`, greedy and by beam search.

The build runs end to end on ONNX Runtime in this process: decoding, resizing, components,
generation loop, detokenisation. The reference runs end to end in transformers, from the checkpoint
in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.engines.kinds import OPENVINO
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import EngineRecord, Manifest
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.examples import EXAMPLES, Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.export.progress import Advance, Progress
from iblip.export.verification.thresholds import AGREEMENT

if TYPE_CHECKING:
    from iblip.export.verification.reference import Reference

WAYS: Mapping[str, Mapping[str, Any]] = {
    "text": {},
    "beams": {"num_beams": 5, "length_penalty": 1.0},
}
"""Name in the report to the options, which the build and transformers name alike. The first is
greedy; the second is how InstructBLIP's original answers (LAVIS, blip2_vicuna_instruct.py,
`generate`)."""


Watch = Callable[[Pipeline], None]
"""What is called with an open build."""


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """The result of a comparison of texts. True if enough of them agree.

    Attributes:
        examples: the number of examples.
        same: how many texts equal the reference's exactly.
        required: the smallest share of texts that must.
        right, reference_right: how many texts equal the example's answer, apart from white space at
            the ends; `None` if the examples have no answers.
        different: `{"example", "prompt", "text", "reference"}` of the first ten that differ.
    """

    examples: int
    same: int
    required: float
    right: int | None
    reference_right: int | None
    different: tuple[Mapping[str, str], ...]

    def __bool__(self) -> bool:
        return self.same >= self.required * self.examples

    def to_json(self) -> dict[str, Any]:
        """Counts and shares, JSON-ready."""
        report: dict[str, Any] = {
            "passed": bool(self),
            "examples": self.examples,
            "same_text": self.same,
            "agreement": self.same / self.examples,
            "wanted_agreement": self.required,
        }
        if self.right is not None and self.reference_right is not None:
            report["exact_match"] = self.right / self.examples
            report["reference_exact_match"] = self.reference_right / self.examples
        return {**report, "different": list(self.different)}


def verify_texts(
    directory: Path,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    progress: Progress,
    ways: Sequence[str] = ("text",),
    watch: Watch | None = None,
) -> dict[str, TextReport]:
    """Compares every example's text with transformers'.

    Args:
        directory: of the build. Its ONNX graphs are run, whatever engine it was built for.
        checkpoint: what it was built from.
        examples: the questions.
        progress: gets a stage for each way, advanced with each answer.
        ways: keys of `WAYS`.
        watch: called with the open build once it has answered.

    Returns:
        A report for each way.
    """
    from iblip.export.verification.references import reference_of

    manifest = Manifest.read(directory)
    texts = build_texts(directory, manifest, examples, progress, ways, watch=watch)
    reference = reference_of(checkpoint, manifest.limits.max_length)
    return {
        way: text_report(
            manifest, examples, texts[way], reference_texts(reference, examples, progress, way)
        )
        for way in ways
    }


def build_texts(
    directory: Path,
    manifest: Manifest,
    examples: Sequence[Example],
    progress: Progress,
    ways: Sequence[str],
    *,
    watch: Watch | None = None,
    **options: Any,
) -> dict[str, list[str]]:
    """The build's answer to each example, by way. Arguments as in `verify_texts`; `options` are
    added to those of each way."""
    texts = {}
    with Pipeline(directory, manifest=on_onnxruntime(manifest)) as pipeline:
        for way in ways:
            with progress.stage(
                f"ask the build{_describe_beams(way)}", len(examples), "questions"
            ) as advance:
                texts[way] = _ask_build(pipeline, examples, {**WAYS[way], **options}, advance)
        if watch is not None:
            watch(pipeline)
    return texts


def reference_texts(
    reference: Reference,
    examples: Sequence[Example],
    progress: Progress,
    way: str,
    **options: Any,
) -> list[str]:
    """transformers' answer to each example. `options` are added to those of the way."""
    with progress.stage(
        f"ask transformers{_describe_beams(way)}", len(examples), "questions"
    ) as advance:
        return _ask_reference(reference, examples, {**WAYS[way], **options}, advance)


def _describe_beams(way: str) -> str:
    beams = WAYS[way].get("num_beams")
    return f" with {beams} beams" if beams else ""


def text_report(
    manifest: Manifest,
    examples: Sequence[Example],
    texts: Sequence[str],
    reference: Sequence[str],
) -> TextReport:
    """Compares the answers of a build with those of transformers, example by example."""
    pairs = list(zip(examples, texts, reference, strict=True))
    has_answers = all(example.answer is not None for example in examples)
    return TextReport(
        examples=len(examples),
        same=sum(text == expected for _, text, expected in pairs),
        required=min(AGREEMENT[record.precision] for record in manifest.components.values()),
        right=sum(e.is_right(text) for e, text, _ in pairs) if has_answers else None,
        reference_right=sum(e.is_right(text) for e, _, text in pairs) if has_answers else None,
        different=tuple(
            {"example": e.name, "prompt": e.prompt, "text": text, "reference": expected}
            for e, text, expected in pairs
            if text != expected
        )[:10],
    )


def on_onnxruntime(manifest: Manifest) -> Manifest:
    """The same build with every component run from its ONNX graphs, on a CPU.

    OpenVINO, which does that too, keeps what it runs.
    """
    components = {
        name: record
        if record.engine.kind == OPENVINO
        else replace(
            record,
            engine=EngineRecord(
                kind="onnxruntime", files={key: graph.path for key, graph in record.graphs.items()}
            ),
        )
        for name, record in manifest.components.items()
    }
    return replace(manifest, components=components)


def _ask_build(
    pipeline: Pipeline, examples: Sequence[Example], way: Mapping[str, Any], advance: Advance
) -> list[str]:
    options = GenerationOptions(**way)
    texts = []
    for example in examples:
        pixels = pixels_from_image(example.image, pipeline.manifest.preprocessing)
        texts.append(pipeline.answer(pixels, example.prompt, options).text)
        advance(1)
    return texts


def _ask_reference(
    reference: Reference, examples: Sequence[Example], way: Mapping[str, Any], advance: Advance
) -> list[str]:
    from iblip.export.verification.reference import answers

    images, prompts = [e.image for e in examples], [e.prompt for e in examples]
    texts: dict[int, str] = {}
    for batch, results in answers(reference, images, prompts, **way):
        texts.update(zip(batch, (answer.text for answer in results), strict=True))
        advance(len(batch))
    return [texts[index] for index in range(len(examples))]


def examples_to_ask(
    checkpoint: Checkpoint, examples: Path | None = None, limit: int | None = None
) -> list[Example]:
    """The examples that a build is asked: those named, or the checkpoint's own if it has any.

    Args:
        checkpoint: what the build is made from.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: most examples; `None` is all.

    Raises:
        InputError: `examples` contains no example.
    """
    source = examples or checkpoint.directory / "examples"
    if examples is None and not (source / EXAMPLES).exists():
        return []
    return read_examples(source, limit)


def text_reports(
    directory: Path,
    checkpoint: Checkpoint,
    progress: Progress,
    examples: Sequence[Example],
    ways: Sequence[str] = ("text",),
    watch: Watch | None = None,
) -> dict[str, dict[str, Any]]:
    """Reports of `verify_texts`, JSON-ready; `{"text": {"skipped": reason}}` without examples.

    Args:
        directory: of the build.
        checkpoint: what it was built from.
        progress: gets a stage for each way, advanced with each answer.
        examples: as from `examples_to_ask`.
        ways: keys of `engines.evaluation.texts.WAYS`: `text` is greedy.
        watch: called with the open build, with or without examples.
    """
    if not examples:
        reason = f"the checkpoint has no examples/{EXAMPLES}, and --examples names none"
        progress.note(f"answers are not compared: {reason}")
        build_texts(directory, Manifest.read(directory), (), progress, (), watch=watch)
        return {"text": {"skipped": reason}}
    reports = verify_texts(directory, checkpoint, examples, progress, ways, watch)
    for report in reports.values():
        progress.note(f"same text as transformers on {report.same} of {report.examples} examples")
    return {way: report.to_json() for way, report in reports.items()}
