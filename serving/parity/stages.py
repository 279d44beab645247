"""The stages of the parity report: a table, in the order in which data flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.verification.thresholds import THRESHOLDS
from iblip.serving.parity.report import Check, Sense, StageReport
from iblip.serving.parity.subjects import STREAMED_TOKENS, Subject

if TYPE_CHECKING:
    from iblip.export.verification.invariance import Variation

PIXEL_IMAGES = 4
"""Number of images that are converted to every mode and size."""


@dataclass(frozen=True)
class Stage:
    """One row of `STAGES`.

    Attributes:
        title: for people.
        run: compares a build with the reference.
    """

    title: str
    run: Callable[[Subject], StageReport]


def _compare_all_graphs(subject: Subject) -> StageReport:
    from iblip.export.verification.comparison import figures
    from iblip.export.verification.graphs import compare_graphs

    original = subject.original
    reference = original.reference(subject.positions)
    compared = compare_graphs(subject.graphs, original.checkpoint, subject.progress, reference)
    graphs = {title: figures(comparisons) for title, comparisons in compared.items()}
    checks = [
        Check(
            name=f"{title}: {key.replace('_', ' ')}",
            value=figure[key],
            limit=figure["limits"].get(key),
            sense=sense,
        )
        for title, figure in graphs.items()
        for key, sense in SENSES.items()
    ]
    return StageReport(checks=tuple(checks), details={"graphs": graphs})


SENSES: Mapping[str, Sense] = {"max_abs": "most", "cosine": "least"}
"""Figures of a graph, and the sense of their limits."""


def _compare_pixels(subject: Subject) -> StageReport:
    from iblip.export.verification.preprocessing import pixel_differences

    images = [recording.image for recording in subject.recordings[:PIXEL_IMAGES]]
    checkpoint, settings = subject.original.checkpoint, subject.manifest.preprocessing
    with subject.progress.stage("compare pixels"):
        differences = pixel_differences(checkpoint, settings, images)
    different = sum(difference.different for difference in differences)
    return StageReport(
        checks=(Check(name="values that differ", value=different, limit=0),),
        details={"variants": [difference.to_json() for difference in differences]},
    )


def _compare_blocks(component: str) -> Callable[[Subject], StageReport]:
    """Block by block; for a language model, every graph that ONNX Runtime serves."""

    def run(subject: Subject) -> StageReport:
        from iblip.export.verification.blocks import first_out

        graphs = [g for g in subject.graphs if g.component == component and g.name in BLOCKS]
        compared = {f"{g.component}/{g.name}": _block_errors(subject, g) for g in graphs}
        checks, fault = [], ""
        for title, errors in compared.items():
            prefix = f"{title}: " if len(compared) > 1 else ""
            outlier = first_out(errors)
            fault = fault or ("" if outlier is None else outlier.path)
            own = max(errors, key=lambda error: error.own / error.own_limit)
            stream = max(errors, key=lambda error: error.stream / error.stream_limit)
            last = errors[-1]
            checks += [
                Check(
                    name=f"{prefix}own error of a block",
                    value=own.own,
                    limit=own.own_limit,
                    where=own.path,
                ),
                Check(
                    name=f"{prefix}error of the stream",
                    value=stream.stream,
                    limit=stream.stream_limit,
                    where=stream.path,
                ),
                Check(name=f"{last.path}: max abs", value=last.max_abs),
                Check(name=f"{last.path}: cosine", value=last.cosine, sense="least"),
            ]
        details = {title: [e.to_json() for e in errors] for title, errors in compared.items()}
        return StageReport(checks=tuple(checks), details={"blocks": details}, fault=fault)

    return run


BLOCKS = ("model", "encoder", "batched_decoder")
"""Graphs that are compared block by block: `decoder` has the same weights as `batched_decoder`."""


def _block_errors(subject: Subject, graph: OnnxGraph) -> list[Any]:
    from iblip.export.verification.blocks import block_errors

    title, count = f"blocks of {graph.component}/{graph.name}", 2 * len(subject.recordings)
    pixels, band = subject.pixels, THRESHOLDS[graph.precision].band
    with subject.progress.stage(title, count, "examples") as advance:
        return block_errors(graph, subject.recordings, pixels, band, advance)


def _compare_first_tokens(subject: Subject) -> StageReport:
    from iblip.engines.evaluation.first_token import compare_first_tokens, first_logits
    from iblip.engines.evaluation.texts import on_onnxruntime

    questions = [(recording.image, recording.prompt) for recording in subject.recordings]
    with subject.progress.stage("first tokens", len(questions), "questions") as advance:
        manifest = on_onnxruntime(subject.manifest)
        logits = first_logits(subject.directory, manifest, questions, advance)
    names = [recording.name for recording in subject.recordings]
    rows = compare_first_tokens(names, logits, subject.reference_logits())
    limits, count = subject.thresholds, len(rows)
    # One example is the smallest share that a few can show: unless all must agree, one may not.
    top1 = limits.top1 if limits.top1 == 1 else min(limits.top1, 1 - 1 / count)
    divergence = sum(row.divergence for row in rows) / count
    return StageReport(
        checks=(
            Check(name="mean divergence, nats", value=divergence, limit=limits.divergence),
            Check(name="largest divergence, nats", value=max(row.divergence for row in rows)),
            Check(
                name="same most likely token",
                value=sum(row.same for row in rows) / count,
                limit=top1,
                sense="least",
            ),
            Check(name="logits: max abs", value=max(row.max_abs for row in rows)),
            *_compare_with_base(subject, names),
        ),
        details={"examples": [vars(row) for row in rows]},
    )


LEAST_CHANGE = 1e-6
"""Nats by which an adapter changes the distribution of a first token, if it changes anything."""


def _compare_with_base(subject: Subject, names: Sequence[str]) -> Iterator[Check]:
    """transformers with and without the checkpoint's adapters, if it has any."""
    from iblip.engines.evaluation.first_token import compare_first_tokens

    base, adapted = subject.original.logits_of_base(subject.positions), subject.reference_logits()
    if base is None:
        return
    tokens = min(base.shape[1], adapted.shape[1])  # an adapter may add some
    rows = compare_first_tokens(names, base[:, :tokens], adapted[:, :tokens])
    yield Check(
        name="with and without the adapter: largest divergence, nats",
        value=max(row.divergence for row in rows),
        limit=LEAST_CHANGE,
        sense="least",
    )
    yield Check(
        name="with and without the adapter: same most likely token",
        value=sum(row.same for row in rows) / len(rows),
    )


def _compare_answers(way: str) -> Callable[[Subject], StageReport]:
    def run(subject: Subject) -> StageReport:
        from iblip.engines.evaluation.texts import text_report

        original = subject.original
        if not original.examples:
            return StageReport(skipped=NO_EXAMPLES)
        expected = original.texts(way, subject.positions)
        report = text_report(subject.manifest, original.examples, subject.answers(way), expected)
        share = report.same / report.examples
        check = Check(name="same text", value=share, limit=report.required, sense="least")
        return StageReport(checks=(check,), details=report.to_json())

    return run


NO_EXAMPLES = "the checkpoint has no examples/examples.jsonl, and --examples is not given"


def _compare_accuracy(subject: Subject) -> StageReport:
    from iblip.engines.evaluation.accuracy import accuracy

    original = subject.original
    if original.checkpoint.synthetic:
        return StageReport(skipped=MEANS_NOTHING)
    if not original.examples:
        return StageReport(skipped=NO_EXAMPLES)
    if any(example.answer is None for example in original.examples):
        return StageReport(skipped="some examples come without the right answer")
    if original.choice.streamed:
        return StageReport(skipped=f"answers are limited to {STREAMED_TOKENS} tokens")
    result = accuracy(
        subject.mark(subject.answers("text")),
        subject.mark(original.texts("text", subject.positions)),
        subject.thresholds.accuracy_loss,
    )
    report = result.to_json()
    loss = (result.reference_right - result.right) / result.examples
    return StageReport(
        checks=(
            Check(name="right answers lost, share", value=loss, limit=result.most_lost),
            Check(name="right answers, share", value=report["right"], sense="least"),
        ),
        details=report,
    )


def _compare_rows(kind: str) -> Callable[[Subject], StageReport]:
    def run(subject: Subject) -> StageReport:
        from iblip.export.verification.feeds import feed_of
        from iblip.export.verification.invariance import Row
        from iblip.export.verification.sessions import open_graph

        recording, pixels, room = subject.recordings[0], subject.pixels[0], _free_positions(subject)
        variations: list[Variation] = []
        graphs = [graph for graph in subject.graphs if graph.name != "embed_tokens"]
        with subject.progress.stage(f"{kind} invariance", len(graphs), "graphs") as advance:
            for graph in graphs:
                limits = THRESHOLDS[graph.precision]
                row = Row(graph, open_graph(graph.path), feed_of(graph, recording, pixels))
                variations += (
                    row.in_batches(limits.batching)
                    if kind == "batch"
                    else row.padded(limits.padding, room[graph.component])
                )
                advance(1)
        worst: dict[str, Variation] = {}
        for variation in variations:
            if variation.difference >= worst.setdefault(variation.graph, variation).difference:
                worst[variation.graph] = variation
        checks = tuple(
            Check(name=f"{v.graph}: change", value=v.difference, limit=v.limit, where=v.beside)
            for v in worst.values()
        )
        return StageReport(checks=checks, details={"rows": [v.to_json() for v in variations]})

    return run


def _free_positions(subject: Subject) -> Mapping[str, int]:
    """By component: positions that can follow the recorded example's."""
    tensors, manifest = subject.recordings[0].tensors, subject.manifest
    instruction = tensors.get("qformer_input_ids")
    read = 0 if instruction is None else instruction.shape[1]
    used = tensors["inputs_embeds"].shape[1]
    return {
        "vision_encoder": 0,
        "qformer": manifest.max_instruction - read,
        "language_model": manifest.language_model.max_length - used - 1,
    }


STAGES: Mapping[str, Stage] = {
    "preprocessing": Stage("Preprocessing, against Pillow's path", _compare_pixels),
    "vision_encoder": Stage("Vision encoder, block by block", _compare_blocks("vision_encoder")),
    "qformer": Stage("Q-Former and visual prompt, block by block", _compare_blocks("qformer")),
    "language_model": Stage("Language model, block by block", _compare_blocks("language_model")),
    "first_token": Stage("First token, through all components", _compare_first_tokens),
    "graphs": Stage("Every graph, on made-up inputs", _compare_all_graphs),
    "text": Stage("Greedy text", _compare_answers("text")),
    "beams": Stage("Text of a beam search with five beams", _compare_answers("beams")),
    "accuracy": Stage("Right answers", _compare_accuracy),
    "batching": Stage("A row alone and in a batch", _compare_rows("batch")),
    "padding": Stage("A row with and without padding", _compare_rows("padding")),
}
"""By name, as `--stage` takes it."""
