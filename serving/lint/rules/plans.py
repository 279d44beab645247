"""Rules about a build's plans: whether configs fit their profiles, and the server loads them."""

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
from iblip.serving.wire.names import MODEL

PROFILED = {"max_instruction": ("qformer", "instruction"), "images": ("vision_encoder", BATCH)}
"""Limits that clients are told, and the component and axis whose profiles bound each."""


def _profiles(name: str, repository: Repository) -> list[Profile]:
    components = {} if repository.manifest is None else repository.manifest.components
    return profiles_of(components[name].engine) if name in components else []


def _check_plan_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    profiles = _profiles(model.name, repository)
    most = max((sizes[BATCH][-1] for sizes in profiles if BATCH in sizes), default=None)
    if most is not None and model.config.max_batch_size > most:
        size, line = model.config.max_batch_size, model.line("max_batch_size")
        yield Fault(f"max_batch_size is {size}; the plan takes batches up to {most}", line)


def _check_plan_profile(model: Model, repository: Repository) -> Iterator[Fault]:
    count = len(_profiles(model.name, repository))
    for index, group in enumerate(model.config.instance_group if count else ()):
        for name in group.profile:
            if name.isdecimal() and int(name) >= count:
                line = model.line("instance_group", index, "profile")
                yield Fault(f"profile {name} is selected; the plan has 0 to {count - 1}", line)


def _check_plan_warmup(model: Model, repository: Repository) -> Iterator[Fault]:
    profiles = _profiles(model.name, repository)
    record = repository.record(model)
    if record is None or not profiles:
        return
    for index, sample in enumerate(model.config.model_warmup):
        batch = max(1, sample.batch_size)
        shapes = {name: [batch, *value.dims] for name, value in sample.inputs.items()}
        sizes = sizes_of(record.graphs[GRAPH].contract, shapes)
        if not any(takes(profile, sizes) for profile in profiles):
            shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            message = f"warm-up {sample.name!r} has {shown}; no profile of the plan takes that"
            yield Fault(message, model.line("model_warmup", index))


def _check_limits_beyond_plan(model: Model, repository: Repository) -> Iterator[Fault]:
    limits = limits_of(model) if model.name == MODEL else None
    for name, (component, axis) in PROFILED.items() if limits else ():
        profiles = _profiles(component, repository)
        most = max((profile[axis][-1] for profile in profiles if axis in profile), default=None)
        limit = limits.get(name) if limits else None
        if most is not None and isinstance(limit, int) and limit > most:
            message = f"clients are told {name} {limit}; the plan of {component} takes {most}"
            yield Fault(message, model.line("parameters", Entry("limits")))


def _plan(model: Model, repository: Repository) -> EngineRecord | None:
    record = repository.record(model)
    return record.engine if record is not None and model.backend == "tensorrt" else None


def _check_plan_library(model: Model, repository: Repository) -> Iterator[Fault]:
    engine = _plan(model, repository)
    if engine is not None and engine.kind != "tensorrt":
        message = f"the engine is a plan of {engine.kind}; Triton's tensorrt backend cannot read it"
        yield Fault(message, model.line("platform"))


def _check_plan_version(model: Model, repository: Repository) -> Iterator[Fault]:
    for engine, plan, library in _versions(model, repository):
        if not loads_version(plan, library, tuple(engine.details.get("flags", ()))):
            message = (
                f"the plan was built by TensorRT {plan}; {repository.server.title} has {library}"
            )
            yield Fault(message, model.line("platform"))


def _check_plan_flag(model: Model, repository: Repository) -> Iterator[Fault]:
    for engine, plan, library in _versions(model, repository):
        compatible = VERSION_COMPATIBLE in engine.details.get("flags", ())
        if compatible and loads_version(plan, library, (VERSION_COMPATIBLE,)):
            yield Fault(f"the plan is version-compatible: it needs {TRITON_FLAG}", line=1)


def _versions(model: Model, repository: Repository) -> Iterator[tuple[EngineRecord, str, str]]:
    """A plan, the TensorRT version that built it, and the server's, where both are known."""
    engine, library = _plan(model, repository), repository.server.tensorrt
    if engine is not None and engine.kind == "tensorrt" and library is not None:
        plan = engine.details.get("version")
        yield from [(engine, str(plan), library)] if plan else []


RULES = (
    Rule(
        id="plan-batch",
        severity=Severity.ERROR,
        title="In a build, `max_batch_size` is at most the largest batch of the plan's profiles.",
        why="The model is not loaded, or fails at the first such batch.",
        mend="Lower it, or rebuild with a larger --max-batch.",
        server=Verdict.UNASKED,
        check=_check_plan_batch,
    ),
    Rule(
        id="plan-profile",
        severity=Severity.ERROR,
        title="In a build, instances select a profile that the plan has.",
        why="The model is not loaded.",
        mend="Write the index of a profile in the plan, from 0.",
        server=Verdict.UNASKED,
        check=_check_plan_profile,
    ),
    Rule(
        id="plan-warmup",
        severity=Severity.ERROR,
        title="In a build, each warm-up fits one of the plan's profiles.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Warm up with sizes within a profile, or rebuild with larger profiles.",
        server=Verdict.UNASKED,
        check=_check_plan_warmup,
    ),
    Rule(
        id="limits-beyond-plan",
        severity=Severity.ERROR,
        title="In a build, the limits told to clients are within the plans' profiles.",
        why="A client sends requests that the engine then refuses.",
        mend="Lower the limit in the parameter, or rebuild with a larger profile.",
        server=Verdict.UNASKED,
        check=_check_limits_beyond_plan,
    ),
    Rule(
        id="plan-library",
        severity=Severity.ERROR,
        title="In a build, Triton's `tensorrt` backend gets plans built by TensorRT.",
        why="It cannot read plans of TensorRT-RTX: the model is not loaded.",
        mend='Build with --engine tensorrt, or write backend: "python".',
        server=Verdict.UNASKED,
        check=_check_plan_library,
    ),
    Rule(
        id="plan-version",
        severity=Severity.ERROR,
        title="In a build, the container's TensorRT loads the plans.",
        why="A plan loads only in the version that built it, unless it is version-compatible. The "
        "model is not loaded.",
        mend="Build with the container's version (docs/deploy.md), or take another container.",
        server=Verdict.UNASKED,
        check=_check_plan_version,
    ),
    Rule(
        id="plan-flag",
        severity=Severity.NOTE,
        title="A server for version-compatible plans is started with the flag for them.",
        why="Without the flag it refuses the plans.",
        mend="`iblip serve` passes the flag; pass it to a server that is started in another way.",
        server=Verdict.UNASKED,
        check=_check_plan_flag,
    ),
)
