"""The stages of the parity report: a table, in the order in which data flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.verification.thresholds import THRESHOLDS
from iblip.serving.parity.report import Check, Sense, StageReport
from iblip.serving.parity.subjects import STREAMED_TOKENS, Subject

if TYPE_CHECKING:
    from iblip.export.verification.invariance import Variation

PICTURES = 4
"""Pictures that are turned into every mode and size."""


@dataclass(frozen=True)
class Stage:
    """One row of `STAGES`.

    Attributes:
        title: for people.
        run: compares a build.
    """

    title: str
    run: Callable[[Subject], StageReport]


def _graphs(subject: Subject) -> StageReport:
    from iblip.export.verification.comparison import figures
    from iblip.export.verification.graphs import compare_graphs

    original = subject.original
    reference = original.reference(subject.positions)
    compared = compare_graphs(subject.graphs, original.checkpoint, subject.progress, reference)
    found = {title: figures(comparisons) for title, comparisons in compared.items()}
    checks = [
        Check(
            name=f"{title}: {key.replace('_', ' ')}",
            value=figure[key],
            limit=figure["limits"].get(key),
            sense=sense,
        )
        for title, figure in found.items()
        for key, sense in SENSES.items()
    ]
    return StageReport(checks=tuple(checks), details={"graphs": found})


SENSES: Mapping[str, Sense] = {"max_abs": "most", "cosine": "least"}
"""Figures of a graph, and what their limits are."""


def _preprocessing(subject: Subject) -> StageReport:
    from iblip.export.verification.preprocessing import pixel_differences

    images = [recording.image for recording in subject.recordings[:PICTURES]]
    checkpoint, settings = subject.original.checkpoint, subject.manifest.preprocessing
    with subject.progress.stage("compare pixels"):
        found = pixel_differences(checkpoint, settings, images)
    different = sum(difference.different for difference in found)
    return StageReport(
        checks=(Check(name="values that differ", value=different, limit=0),),
        details={"variants": [difference.to_json() for difference in found]},
    )


def _blocks(component: str) -> Callable[[Subject], StageReport]:
    """Block by block; of a language model, every graph that is served with ONNX Runtime."""

    def run(subject: Subject) -> StageReport:
        from iblip.export.verification.blocks import first_out

        graphs = [g for g in subject.graphs if g.component == component and g.name in BLOCKS]
        compared = {f"{g.component}/{g.name}": _block_errors(subject, g) for g in graphs}
        checks, fault = [], ""
        for title, errors in compared.items():
            prefix = f"{title}: " if len(compared) > 1 else ""
            out = first_out(errors)
            fault = fault or ("" if out is None else out.path)
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


def _first_token(subject: Subject) -> StageReport:
    from iblip.engines.evaluation.first_token import compare_first_tokens, first_logits
    from iblip.engines.evaluation.texts import on_onnxruntime

    asked = [(recording.image, recording.prompt) for recording in subject.recordings]
    with subject.progress.stage("first tokens", len(asked), "questions") as advance:
        found = first_logits(subject.directory, on_onnxruntime(subject.manifest), asked, advance)
    names = [recording.name for recording in subject.recordings]
    rows = compare_first_tokens(names, found, subject.wanted_logits())
    limits, count = subject.thresholds, len(rows)
    # A few examples cannot show less than one of them: where not all must agree, one need not.
    top1 = limits.top1 if limits.top1 == 1 else min(limits.top1, 1 - 1 / count)
    divergence = sum(row.divergence for row in rows) / count
    return StageReport(
        checks=(
            Check(name="mean divergence, nats", value=divergence, limit=limits.divergence),
            Check(name="largest divergence, nats", value=max(row.divergence for row in rows)),
            Check(
                name="same likeliest token",
                value=sum(row.same for row in rows) / count,
                limit=top1,
                sense="least",
            ),
            Check(name="logits: max abs", value=max(row.max_abs for row in rows)),
        ),
        details={"examples": [vars(row) for row in rows]},
    )


def _answers(way: str) -> Callable[[Subject], StageReport]:
    def run(subject: Subject) -> StageReport:
        from iblip.engines.evaluation.texts import text_report

        original = subject.original
        if not original.examples:
            return StageReport(skipped=NO_EXAMPLES)
        wanted = original.texts(way, subject.positions)
        report = text_report(subject.manifest, original.examples, subject.answers(way), wanted)
        share = report.same / report.examples
        check = Check(name="same text", value=share, limit=report.required, sense="least")
        return StageReport(checks=(check,), details=report.to_json())

    return run


NO_EXAMPLES = "the checkpoint has no examples/examples.jsonl, and --examples names none"


def _accuracy(subject: Subject) -> StageReport:
    from iblip.engines.evaluation.accuracy import accuracy

    original = subject.original
    if original.checkpoint.synthetic:
        return StageReport(skipped=MEANS_NOTHING)
    if not original.examples:
        return StageReport(skipped=NO_EXAMPLES)
    if any(example.answer is None for example in original.examples):
        return StageReport(skipped="some examples have no right answer beside them")
    if original.choice.streamed:
        return StageReport(skipped=f"answers are cut to {STREAMED_TOKENS} tokens")
    found = accuracy(
        subject.right(subject.answers("text")),
        subject.right(original.texts("text", subject.positions)),
        subject.thresholds.accuracy_loss,
    )
    report = found.to_json()
    loss = (found.reference_right - found.right) / found.examples
    return StageReport(
        checks=(
            Check(name="right answers lost, share", value=loss, limit=found.most_lost),
            Check(name="right answers, share", value=report["right"], sense="least"),
        ),
        details=report,
    )


def _invariance(kind: str) -> Callable[[Subject], StageReport]:
    def run(subject: Subject) -> StageReport:
        from iblip.export.verification.feeds import feed_of
        from iblip.export.verification.invariance import Row
        from iblip.export.verification.sessions import open_graph

        recording, pixels, room = subject.recordings[0], subject.pixels[0], _room(subject)
        found: list[Variation] = []
        graphs = [graph for graph in subject.graphs if graph.name != "embed_tokens"]
        with subject.progress.stage(f"{kind} invariance", len(graphs), "graphs") as advance:
            for graph in graphs:
                limits = THRESHOLDS[graph.precision]
                row = Row(graph, open_graph(graph.path), feed_of(graph, recording, pixels))
                found += (
                    row.in_batches(limits.batching)
                    if kind == "batch"
                    else row.padded(limits.padding, room[graph.component])
                )
                advance(1)
        worst: dict[str, Variation] = {}
        for variation in found:
            if variation.difference >= worst.setdefault(variation.graph, variation).difference:
                worst[variation.graph] = variation
        checks = tuple(
            Check(name=f"{v.graph}: change", value=v.difference, limit=v.limit, where=v.beside)
            for v in worst.values()
        )
        return StageReport(checks=checks, details={"rows": [v.to_json() for v in found]})

    return run


def _room(subject: Subject) -> Mapping[str, int]:
    """By component: positions that may stand behind the recorded example's."""
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
    "preprocessing": Stage("Preprocessing, against Pillow's path", _preprocessing),
    "vision_encoder": Stage("Vision encoder, block by block", _blocks("vision_encoder")),
    "qformer": Stage("Q-Former and visual prompt, block by block", _blocks("qformer")),
    "language_model": Stage("Language model, block by block", _blocks("language_model")),
    "first_token": Stage("First token, through the whole chain", _first_token),
    "graphs": Stage("Every graph, on made-up inputs", _graphs),
    "text": Stage("Greedy text", _answers("text")),
    "beams": Stage("Text of five beams", _answers("beams")),
    "accuracy": Stage("Right answers", _accuracy),
    "batching": Stage("A row alone and in a batch", _invariance("batch")),
    "padding": Stage("A row with and without padding", _invariance("padding")),
}
"""By name, as `--stage` takes it."""
