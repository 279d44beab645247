"""Runs the stages of the parity report."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from iblip.export.adapters.adapted import Adapted
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import graphs_of_build
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.examples import EXAMPLES, Example, read_examples
from iblip.export.graph.digest import check_digests
from iblip.export.messages import did_you_mean
from iblip.export.opening import checkpoint_from_source, source_of_build
from iblip.export.precision import DTYPES, PrecisionPolicy
from iblip.export.progress import Progress
from iblip.export.system.installing import check_peft
from iblip.export.system.paths import settle_paths
from iblip.export.verification.choosing import ReferenceChoice, choose_reference
from iblip.serving.parity.report import BuildReport, Report, StageReport, engines_left_out
from iblip.serving.parity.samples import samples_of
from iblip.serving.parity.stages import STAGES
from iblip.serving.parity.subjects import STREAMED_EXAMPLES, STREAMED_TOKENS, Original, Subject

TOOLS = ("iblip", "torch", "transformers", "onnxruntime", "numpy", "pillow")
"""Distributions whose versions the report records."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """What to compare, and how much of it.

    Attributes:
        source: of the checkpoint; `None` is the first build's own, `source_of_build`.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: most examples to use; `None` is all of them.
        stages: names of `STAGES`; empty is all.
        reference: how transformers runs, an `export.verification.choosing.ReferenceKind`.

    Raises:
        OptionError: there is no such stage, or the limit is below 1.
    """

    source: ModelSource | None = None
    examples: Path | None = None
    limit: int | None = None
    stages: tuple[str, ...] = ()
    reference: str = "auto"

    def __post_init__(self) -> None:
        settle_paths(self, "examples")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; expected 1 or more")
        for name in self.stages:
            if name not in STAGES:
                hint, known = did_you_mean(name, STAGES), ", ".join(STAGES)
                raise OptionError(f"--stage {name}: there is no such stage.{hint} Stages: {known}")


def parity_report(
    directories: Sequence[Path], progress: Progress, options: ParityOptions | None = None
) -> Report:
    """Compares builds of one checkpoint with transformers.

    Args:
        directories: of the builds.
        progress: shows each stage.
        options: what to compare.

    Raises:
        OptionError: no build is given, or one is given twice.
        BuildDirectoryError: a directory is not a build, or its files differ from its manifest.
        CheckpointError: the checkpoint is missing, or is not the one that a build was made from.
    """
    options = options or ParityOptions()
    if not directories or len({path.absolute() for path in directories}) != len(directories):
        raise OptionError("expected one or more build directories, each once")
    manifests = [Manifest.read(directory) for directory in directories]
    source = options.source or source_of_build(directories[0])
    checkpoint = checkpoint_from_source(source, progress)
    _check_builds(directories, manifests, checkpoint, progress)
    choice = choose_reference(checkpoint, options.reference)
    if source.adapters and not choice.streamed:
        check_peft()
    examples = _choose_examples(checkpoint, options, progress, streamed=choice.streamed)
    original = Original(checkpoint, examples, progress, choice, options.limit)
    labels = _labels(directories, manifests)
    subjects = [
        Subject(path, manifest, graphs_of_build(path, manifest), original)
        for path, manifest in zip(directories, manifests, strict=True)
    ]
    names = options.stages or tuple(STAGES)
    builds = tuple(map(_compare, subjects, labels, repeat(names)))
    return Report(
        checkpoint=checkpoint.name,
        model=source.model,
        synthetic=checkpoint.synthetic,
        reference=_describe(choice, adapted=isinstance(checkpoint, Adapted)),
        examples=len(examples),
        builds=builds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tools={tool: importlib.metadata.version(tool) for tool in TOOLS},
        samples=samples_of(original, subjects) if "text" in names else (),
    )


def _check_builds(
    directories: Sequence[Path],
    manifests: Sequence[Manifest],
    checkpoint: Checkpoint,
    progress: Progress,
) -> None:
    with progress.stage("check digests"):
        digests = checkpoint.digests()
        for directory, manifest in zip(directories, manifests, strict=True):
            if digests != manifest.source["files"]:
                raise CheckpointError(
                    f"{checkpoint.directory} is not the checkpoint that {directory} was built from:"
                    " its files have other digests. Give the right one with --model, or rebuild."
                )
            check_digests(directory, manifest)


def _describe(choice: ReferenceChoice, *, adapted: bool) -> dict[str, str]:
    if not choice.streamed:
        beside = "; peft runs the adapter beside the weights, unmerged" if adapted else ""
        return {"kind": "whole", "reason": f"{choice.reason}{beside}"}
    limit = f"answers of at most {STREAMED_TOKENS} tokens are compared"
    weaker = (
        "; the adapter is merged by this project's own code, not run by peft" if adapted else ""
    )
    return {"kind": "streamed", "reason": f"one layer at a time: {choice.reason}; {limit}{weaker}"}


def _choose_examples(
    checkpoint: Checkpoint, options: ParityOptions, progress: Progress, *, streamed: bool
) -> list[Example]:
    directory = options.examples or checkpoint.directory / "examples"
    if options.examples is None and not (directory / EXAMPLES).exists():
        progress.note(
            f"the checkpoint has no examples/{EXAMPLES}, and --examples is not given: images are"
            " made up, and answers are not compared"
        )
        return []
    return read_examples(directory, options.limit or (STREAMED_EXAMPLES if streamed else None))


def _labels(directories: Sequence[Path], manifests: Sequence[Manifest]) -> list[str]:
    """The precision of each build, with the directory's name where several have the same."""
    words = [_precision_of(manifest) for manifest in manifests]
    return [
        f"{word} ({path.name})" if words.count(word) > 1 else word
        for word, path in zip(words, directories, strict=True)
    ]


def _precision_of(manifest: Manifest) -> str:
    """The precision as a user would ask for it, in short."""
    precision, architecture = manifest.precision, manifest.language_model.architecture
    for word in DTYPES:
        if PrecisionPolicy.parse(word).resolve(architecture).to_json() == precision:
            return word
    return ", ".join(f"{component} {word}" for component, word in precision.items())


def _compare(subject: Subject, label: str, names: Sequence[str]) -> BuildReport:
    subject.progress.note(f"{subject.directory} ({label})")
    engines = {name: record.engine.kind for name, record in subject.manifest.components.items()}
    if note := engines_left_out(str(subject.directory), engines):
        subject.progress.note(note)
    stages = {name: _run_stage(name, subject) for name in STAGES if name in names}
    return BuildReport(
        build=str(subject.directory),
        label=label,
        precision=dict(subject.manifest.precision),
        stages=stages,
        engines=engines,
        size=subject.size,
        answer_s=subject.answer_s,
    )


def _run_stage(name: str, subject: Subject) -> StageReport:
    started = time.monotonic()
    result = STAGES[name].run(subject)
    if result.skipped:
        subject.progress.note(f"{name} is skipped: {result.skipped}")
    return replace(result, seconds=time.monotonic() - started)
