"""Rules of a build's plans: whether configs keep to their profiles, and the server loads them."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.engines.hardware.compatibility import TRITON_FLAG, VERSION_COMPATIBLE, loads_version
from iblip.export.artifact.manifest import EngineRecord
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.rules.builds import GRAPH, limits_of
from iblip.serving.lint.text_format import Entry
from iblip.serving.repository.profiles import BATCH, Profile, profiles_of, sizes_of, takes
from iblip.serving.wire import ENSEMBLE

PROFILED = {"max_instruction": ("qformer", "instruction"), "images": ("vision_encoder", BATCH)}
"""Limits that clients are told, and the component and axis whose profiles bound each."""


def _profiles(name: str, repository: Repository) -> list[Profile]:
    components = {} if repository.manifest is None else repository.manifest.components
    return profiles_of(components[name].engine) if name in components else []


def _plan_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    profiles = _profiles(model.name, repository)
    most = max((sizes[BATCH][-1] for sizes in profiles if BATCH in sizes), default=None)
    if most is not None and model.config.max_batch_size > most:
        found = model.config.max_batch_size
        line = model.line("max_batch_size")
        yield Fault(f"max_batch_size is {found}; the plan takes batches up to {most}", line)


def _plan_profile(model: Model, repository: Repository) -> Iterator[Fault]:
    count = len(_profiles(model.name, repository))
    for index, group in enumerate(model.config.instance_group if count else ()):
        for name in group.profile:
            if name.isdecimal() and int(name) >= count:
                line = model.line("instance_group", index, "profile")
                yield Fault(f"profile {name} is asked for; the plan has 0 to {count - 1}", line)


def _plan_warmup(model: Model, repository: Repository) -> Iterator[Fault]:
    profiles = _profiles(model.name, repository)
    record = repository.record(model)
    if record is None or not profiles:
        return
    for index, sample in enumerate(model.config.model_warmup):
        batch = max(1, sample.batch_size)
        shapes = {name: [batch, *one.dims] for name, one in sample.inputs.items()}
        sizes = sizes_of(record.graphs[GRAPH].contract, shapes)
        if not any(takes(profile, sizes) for profile in profiles):
            told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            message = f"warm-up {sample.name!r} has {told}; no profile of the plan takes that"
            yield Fault(message, model.line("model_warmup", index))


def _limits(model: Model, repository: Repository) -> Iterator[Fault]:
    limits = limits_of(model) if model.name == ENSEMBLE else None
    for name, (component, axis) in PROFILED.items() if limits else ():
        profiles = _profiles(component, repository)
        most = max((profile[axis][-1] for profile in profiles if axis in profile), default=None)
        told = limits.get(name) if limits else None
        if most is not None and limits and isinstance(told, int) and told > most:
            message = (
                f"clients are told {name} {limits[name]}; the plan of {component} takes {most}"
            )
            yield Fault(message, model.line("parameters", Entry("limits")))


def _plan(model: Model, repository: Repository) -> EngineRecord | None:
    record = repository.record(model)
    return record.engine if record is not None and model.backend == "tensorrt" else None


def _library(model: Model, repository: Repository) -> Iterator[Fault]:
    engine = _plan(model, repository)
    if engine is not None and engine.kind != "tensorrt":
        message = f"the engine is of {engine.kind}; Triton's tensorrt backend reads no such plan"
        yield Fault(message, model.line("platform"))


def _version(model: Model, repository: Repository) -> Iterator[Fault]:
    for engine, plan, library in _versions(model, repository):
        if not loads_version(plan, library, tuple(engine.details.get("flags", ()))):
            message = f"the plan is by TensorRT {plan}; {repository.server.title} has {library}"
            yield Fault(message, model.line("platform"))


def _flag(model: Model, repository: Repository) -> Iterator[Fault]:
    for engine, plan, library in _versions(model, repository):
        compatible = VERSION_COMPATIBLE in engine.details.get("flags", ())
        if compatible and loads_version(plan, library, (VERSION_COMPATIBLE,)):
            yield Fault(f"the plan is version-compatible: it needs {TRITON_FLAG}", line=1)


def _versions(model: Model, repository: Repository) -> Iterator[tuple[EngineRecord, str, str]]:
    """A plan, the version that built it, and that of the server, where both are known."""
    engine, library = _plan(model, repository), repository.server.tensorrt
    if engine is not None and engine.kind == "tensorrt" and library is not None:
        plan = engine.details.get("version")
        yield from [(engine, str(plan), library)] if plan else []


RULES = (
    Rule(
        id="plan-batch",
        severity=Severity.ERROR,
        title="In a build, `max_batch_size` is at most the largest batch of the plan's profiles.",
        why="The model is not loaded, or fails as soon as such a batch comes.",
        mend="Lower it, or build again with a larger --max-batch.",
        server=Verdict.UNASKED,
        check=_plan_batch,
    ),
    Rule(
        id="plan-profile",
        severity=Severity.ERROR,
        title="In a build, instances choose a profile that the plan has.",
        why="The model is not loaded.",
        mend="Write the number of a profile that the plan has, from 0.",
        server=Verdict.UNASKED,
        check=_plan_profile,
    ),
    Rule(
        id="plan-warmup",
        severity=Severity.ERROR,
        title="In a build, one of the plan's profiles takes each warm-up.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Warm up with sizes within a profile, or build again with larger ones.",
        server=Verdict.UNASKED,
        check=_plan_warmup,
    ),
    Rule(
        id="limits-beyond-plan",
        severity=Severity.ERROR,
        title="In a build, clients are told no more than the plans take.",
        why="A client sends what the engine then refuses.",
        mend="Lower the limit in the parameter, or build again with a larger one.",
        server=Verdict.UNASKED,
        check=_limits,
    ),
    Rule(
        id="plan-library",
        severity=Severity.ERROR,
        title="In a build, Triton's `tensorrt` backend gets plans of TensorRT.",
        why="It does not read those of TensorRT-RTX: the model is not loaded.",
        mend='Build with --engine tensorrt, or write backend: "python".',
        server=Verdict.UNASKED,
        check=_library,
    ),
    Rule(
        id="plan-version",
        severity=Severity.ERROR,
        title="In a build, the container's TensorRT loads the plans.",
        why="A plan is for the version that built it, unless it is version-compatible. The model "
        "is not loaded.",
        mend="Build with the container's version (docs/deploy.md), or take another container.",
        server=Verdict.UNASKED,
        check=_version,
    ),
    Rule(
        id="plan-flag",
        severity=Severity.NOTE,
        title="A server of version-compatible plans is told so.",
        why="Without the flag it refuses them.",
        mend="`iblip serve` gives the flag; give it to a server that is started otherwise.",
        server=Verdict.UNASKED,
        check=_flag,
    ),
)
