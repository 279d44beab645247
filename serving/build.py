"""`export build`: checkpoint to a build directory that can be served."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cache.store import EngineCache
from export.build_directory import new_build
from export.checkpoint import Checkpoint
from export.errors import OptionError, VerificationError
from export.graphs import OnnxGraph, VerifiedGraph
from export.manifest import (
    IMAGES,
    MANIFEST,
    MEANS_NOTHING,
    ComponentRecord,
    EngineRecord,
    GraphRecord,
    Manifest,
    ServingLimits,
)
from export.precision import of_language_model
from export.progress import Progress, Silent
from export.source import checkpoint_from_source
from export.toolchain import library_versions
from serving.build_options import LLM_ENGINES, BuildOptions
from serving.unchanged import difference, inputs_of

if TYPE_CHECKING:
    from engines.selection import EngineChoice

logger = logging.getLogger(__name__)

STAYS_ON_CPU = (
    "the language model stays on the CPU: in float32 ONNX Runtime's CUDA provider has no attention"
    " over slots. --precision language_model=fp16 puts it on the GPU."
)
"""Said where ONNX Runtime runs the other components on a GPU."""


def build(options: BuildOptions, progress: Progress | None = None) -> Path:
    """Builds, verifies, and moves into place; returns the build directory.

    Where that is the same build already, it is left as it is (`serving.unchanged`).

    Raises:
        OptionError: an option that does not fit this machine or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported.
        ExportError, EngineError: a graph or an engine cannot be made.
        VerificationError: the build's numbers or answers leave their limits; nothing is replaced.
        BuildDirectoryError: the destination cannot be written, or is something else.
    """
    progress, destination = progress or Silent(), options.destination.absolute()
    options, checkpoint, engine = prepared(options, progress)
    inputs = inputs_of(options, checkpoint, engine)
    if not options.force and (destination / MANIFEST).exists():
        change = difference(destination, inputs)
        if change is None:
            progress.note(f"{destination} is this build already. --force makes it again.")
            return destination
        progress.note(f"{destination} is built anew: {change}")
    with new_build(destination) as work:
        digests = _fill(work, options, checkpoint, engine, progress)
        inputs.write(work, digests)
    return destination


def prepared(
    options: BuildOptions, progress: Progress
) -> tuple[BuildOptions, Checkpoint, EngineChoice]:
    """Options, checkpoint and engine of a build, all of them checked before anything is written.

    Raises:
        OptionError: an option that does not fit this machine or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported.
    """
    from engines.selection import choose_engine
    from serving.native import check_native
    from serving.sizes import check_owners, longest_instruction, sizes_from_options

    engine = choose_engine(options.engine, options.targets)
    check_owners(options, engine.kind)
    progress.note(f"engine: {engine.kind}. {engine.reason}")
    _check_precisions(options, engine, progress)
    check_native(engine.kind, options.triton_backend, options.components)
    checkpoint = checkpoint_from_source(options.source, progress)
    progress.note(f"checkpoint: {checkpoint.directory} ({checkpoint.family.name})")
    if checkpoint.synthetic:
        progress.note(MEANS_NOTHING)
    model_type = checkpoint.config.text_config.model_type
    policy = of_language_model(options.components, model_type)
    if policy != options.components:
        options = replace(options, precision=",".join(f"{k}={v}" for k, v in policy.items()))
    limits = limits_from_options(options, checkpoint)
    options = replace(
        options,
        # The images of one request are one batch.
        max_batch=max(options.max_batch, limits.images),
        max_instruction=longest_instruction(options, engine.kind, checkpoint),
    )
    sizes_from_options(options)
    if options.vllm is not None:
        from engines.language_model.vllm.building import check_vllm

        check_vllm(checkpoint, options.components["language_model"], options.vllm)
    return options, checkpoint, engine


def _check_precisions(options: BuildOptions, engine: EngineChoice, progress: Progress) -> None:
    from engines.precisions import check_precision
    from engines.selection import BESIDE, language_model_kind

    for component, word in options.components.items():
        llm = component == "language_model"
        kind = language_model_kind(options.llm_engine, engine.kind, word) if llm else engine.kind
        if llm and kind == "onnxruntime" and engine.kind in BESIDE:
            progress.note(STAYS_ON_CPU)
        targets = () if llm else options.targets
        quantisation = options.quantisations.get(component)
        if remark := check_precision(kind, component, word, quantisation, targets):
            progress.note(remark)


def limits_from_options(options: BuildOptions, checkpoint: Checkpoint) -> ServingLimits:
    """What the build takes on.

    Raises:
        OptionError: `max_length` is more than the model has, or has no room for prompt and answer;
            the family takes one image, or so many do not fit.
    """
    from export.text import language_model_facts

    facts = language_model_facts(checkpoint)
    # The visual prompt, one token of prompt, one of answer.
    least, most = facts.num_query_tokens + 2, facts.max_length
    length = most if options.max_length is None else options.max_length
    if not least <= length <= most:
        raise OptionError(
            f"--max-length is {length}; this model's sequences have {least} to {most} positions, "
            f"{facts.num_query_tokens} of them for the picture"
        )
    slots = options.slots or LLM_ENGINES[options.llm_engine]
    return ServingLimits(
        slots=slots,
        max_length=length,
        queue=options.queue,
        images=_images(options, checkpoint, (length - 2) // facts.num_query_tokens),
        max_batch=options.max_batch,
        max_instruction=options.max_instruction,
    )


def _images(options: BuildOptions, checkpoint: Checkpoint, room: int) -> int:
    """Most images of a request; `room` is for how many there are positions."""
    family, wanted = checkpoint.family, options.max_images
    most = 1 if family.images == "one" else room
    if wanted is None:
        return min(most, IMAGES)
    if wanted > most:
        raise OptionError(
            f"--max-images is {wanted}; wanted 1, as {family.name} takes one image a request"
            if family.images == "one"
            else f"--max-images is {wanted}; wanted at most {most}: with one token of prompt and "
            "one of answer, more images do not fit into the positions of a sequence"
        )
    return wanted


def _fill(
    work: Path,
    options: BuildOptions,
    checkpoint: Checkpoint,
    engine: EngineChoice,
    progress: Progress,
) -> dict[Path, str]:
    """Makes the build in `work`; returns the sha256 of the checkpoint's files."""
    from export.exporter import graphs_from_checkpoint
    from export.trace_cache import TraceCache
    from serving.repository import repository_from_engines
    from serving.verification import text_reports

    (work / "graphs").mkdir()
    digests: dict[Path, str] = {}
    graphs = graphs_from_checkpoint(
        checkpoint,
        options.components,
        work / "graphs",
        progress,
        options.quantisations,
        file_digests=digests,
        traces=TraceCache(options.trace_cache) if options.trace_cache else None,
    )
    verified = _proven(graphs, options, checkpoint, progress)
    records = _engines(work, verified, options, engine, checkpoint, progress)
    files = checkpoint.digests(digests)
    manifest = _manifest(work, options, checkpoint, verified, records, files)
    manifest.write(work)
    if options.verify:
        text = text_reports(
            work, checkpoint, progress, examples=options.examples, limit=options.limit
        )["text"]
        _check_answers(text)
        manifest = replace(manifest, verification={**manifest.verification, "text": text})
        manifest.write(work)
    with progress.stage("assemble the Triton repository"):
        repository_from_engines(
            work, manifest, max_batch=manifest.limits.max_batch, backend=options.triton_backend
        )
    return digests


def _check_answers(text: Mapping[str, Any]) -> None:
    if not text.get("passed", True):
        cases = "\n  ".join(str(case) for case in text["different"][:3])
        raise VerificationError(
            f"the build says the same as transformers on {text['same_text']} of {text['examples']}"
            f" examples; wanted {text['wanted_agreement']:.0%}. It differs, for instance, on:"
            f"\n  {cases}"
        )


def _proven(
    graphs: tuple[OnnxGraph, ...],
    options: BuildOptions,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[VerifiedGraph, ...]:
    if not options.verify:
        progress.note("verification is skipped (--no-verify); the manifest says so")
        return tuple(VerifiedGraph.without_proof(graph, reason="--no-verify") for graph in graphs)
    from export.verification.graphs import verify_graphs

    return verify_graphs(graphs, checkpoint, progress)


def _engines(
    work: Path,
    verified: tuple[VerifiedGraph, ...],
    options: BuildOptions,
    engine: EngineChoice,
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[str, EngineRecord]:
    """By component. The language model runs on ONNX Runtime, or on vLLM."""
    from engines.selection import KINDS, language_model_kind

    records: dict[str, EngineRecord] = {}
    for component in options.components:
        proofs = [proof for proof in verified if proof.graph.component == component]
        if component == "language_model" and options.vllm is not None:
            from engines.language_model.vllm.building import vllm_from_checkpoint

            records[component] = vllm_from_checkpoint(
                checkpoint,
                work,
                precision=options.components[component],
                settings=options.vllm,
                progress=progress,
            )
        elif component == "language_model":
            kind = language_model_kind(
                options.llm_engine, engine.kind, options.components[component]
            )
            records[component] = _graphs(work, kind, proofs, options)
        elif not KINDS[engine.kind].plans:
            records[component] = _graphs(work, engine.kind, proofs, options)
        else:
            records[component] = _plan(work, proofs[0], options, engine, progress)
    return records


def _graphs(
    work: Path, kind: str, proofs: Sequence[VerifiedGraph], options: BuildOptions
) -> EngineRecord:
    """An engine that reads the graphs themselves; TensorRT's providers want their sizes, too."""
    from serving.sizes import PROFILED, sizes_from_options

    details = {}
    if kind in PROFILED:
        (graph,) = (proof.graph for proof in proofs)
        profiles = sizes_from_options(options).of_contract(graph.contract)
        details["profiles"] = [profile.to_json() for profile in profiles]
    files = {p.graph.name: str(p.graph.path.relative_to(work)) for p in proofs}
    return EngineRecord(kind=kind, files=files, details=details)


def _plan(
    work: Path,
    proof: VerifiedGraph,
    options: BuildOptions,
    engine: EngineChoice,
    progress: Progress,
) -> EngineRecord:
    from engines.cache.plans import cached_plan
    from engines.tensorrt.libraries import find_library
    from serving.sizes import sizes_from_options

    graph = proof.graph
    path = work / "engines" / graph.component / f"{graph.name}.plan"
    path.parent.mkdir(parents=True)
    plan = cached_plan(
        proof,
        path,
        cache=EngineCache(options.engine_cache) if options.engine_cache else None,
        library=find_library(engine.kind),
        profiles=sizes_from_options(options).of_contract(graph.contract),
        options=options.plans,
        build=str(options.destination.absolute()),
        progress=progress,
    )
    files = {graph.name: str(plan.path.relative_to(work))}
    return EngineRecord(kind=engine.kind, files=files, details=plan.details)


def _manifest(
    work: Path,
    options: BuildOptions,
    checkpoint: Checkpoint,
    verified: tuple[VerifiedGraph, ...],
    records: Mapping[str, EngineRecord],
    files: Mapping[str, str],
) -> Manifest:
    from export.text import language_model_facts, preprocessing, write_tokenizers

    components = {
        component: ComponentRecord(
            precision=precision,
            graphs={
                proof.graph.name: _graph_record(work, proof.graph)
                for proof in verified
                if proof.graph.component == component
            },
            engine=records[component],
            quantisation=next(
                (p.graph.quantisation for p in verified if p.graph.component == component), {}
            ),
        )
        for component, precision in options.components.items()
    }
    return Manifest(
        name=checkpoint.name,
        family=checkpoint.family.name,
        source={
            **(checkpoint.source or options.source).to_json(),
            "path": str(checkpoint.directory),
            "synthetic": checkpoint.synthetic,
            "files": files,
        },
        precision=options.components,
        components=components,
        preprocessing=preprocessing(checkpoint),
        text=write_tokenizers(checkpoint, work),
        language_model=language_model_facts(checkpoint),
        limits=limits_from_options(options, checkpoint),
        verification=_figures(verified),
        tools=library_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _graph_record(work: Path, graph: OnnxGraph) -> GraphRecord:
    return GraphRecord(
        path=str(graph.path.relative_to(work)),
        weights=tuple(str(path.relative_to(work)) for path in graph.weights),
        digest=graph.digest,
        contract=graph.contract,
    )


def _figures(verified: tuple[VerifiedGraph, ...]) -> dict[str, Any]:
    skipped = next((proof.skipped for proof in verified if proof.skipped), None)
    if skipped:
        return {"skipped": skipped}
    figures = {f"{p.graph.component}/{p.graph.name}": dict(p.figures) for p in verified}
    return {"graphs": figures}
