"""Rules of where a model's instances run, and of the server that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iblip.export.messages import closest
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository, value_name
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.repository.model_config import PLATFORMS

BACKENDS = (
    "python",
    "tensorrt",
    "onnxruntime",
    "pytorch",
    "tensorflow",
    "openvino",
    "dali",
    "fil",
    "vllm",
    "tensorrtllm",
    "identity",
    "repeat",
    "square",
)
"""Those that NVIDIA's containers have, or have had, and those that Triton's own tests have."""


def _cpu_gpus(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, kind, group in _groups(model):
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            line = model.line("instance_group", index, "gpus")
            yield Fault(f"{kind} with gpus {list(group.gpus)}", line)


def _profiles(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, _, group in _groups(model):
        if group.profile and model.backend != "tensorrt":
            line = model.line("instance_group", index, "profile")
            yield Fault(f"profile on a model of the backend {model.backend!r}", line)


def _profile_numbers(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, _, group in _groups(model):
        for name in group.profile if model.backend == "tensorrt" else ():
            if not name.isdecimal():
                line = model.line("instance_group", index, "profile")
                yield Fault(f"there is no profile {name!r}; wanted a number, from 0", line)


def _plan_on_cpu(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, kind, _ in _groups(model):
        if model.backend == "tensorrt" and kind == "KIND_CPU":
            line = model.line("instance_group", index, "kind")
            yield Fault("KIND_CPU on a TensorRT model", line)


def _gpu_for_cpu(model: Model, repository: Repository) -> Iterator[Fault]:
    record = repository.record(model)
    for index, kind, _ in _groups(model):
        if record is not None and record.engine.kind == "onnxruntime" and kind == "KIND_GPU":
            line = model.line("instance_group", index, "kind")
            yield Fault(f"KIND_GPU; the build's {model.name} runs on a CPU", line)


def _backend(model: Model, repository: Repository) -> Iterator[Fault]:
    server = repository.server
    if _misspelt(model.backend):
        return
    if model.backend and not model.ensemble and model.backend not in server.backends:
        line = model.line("backend") if model.config.backend else model.line("platform")
        has = ", ".join(server.backends)
        yield Fault(f"{server.title} has no backend {model.backend!r}; it has {has}", line)


def _spelling(model: Model, repository: Repository) -> Iterator[Fault]:
    near = "" if model.ensemble else _misspelt(model.backend)
    if near:
        message = f"there is no backend {model.backend!r}. Did you mean {near!r}?"
        yield Fault(message, model.line("backend"))


def _misspelt(backend: str) -> str:
    """Which of Triton's backends is meant by a name that is none; empty of any other name.

    Backends of one's own are not known here, so only what is very like one of Triton's is doubted.
    """
    if backend in BACKENDS:
        return ""
    if backend in PLATFORMS:
        return PLATFORMS[backend]
    return closest(backend.lower(), BACKENDS, cutoff=0.85) or ""


def _groups(model: Model) -> Iterator[tuple[int, str, Any]]:
    from tritonclient.grpc import model_config_pb2

    for index, group in enumerate(model.config.instance_group):
        yield index, value_name(model_config_pb2.ModelInstanceGroup.Kind, group.kind), group


RULES = (
    Rule(
        id="gpus-without-gpu",
        severity=Severity.ERROR,
        title="Only instances of KIND_GPU, or KIND_AUTO, name GPUs.",
        why="The model is not loaded.",
        mend="Take gpus out, or write KIND_GPU.",
        server=Verdict.REFUSES,
        check=_cpu_gpus,
    ),
    Rule(
        id="profile-elsewhere",
        severity=Severity.ERROR,
        title="Only TensorRT models choose a profile.",
        why="The model is not loaded.",
        mend="Take profile out.",
        server=Verdict.REFUSES,
        check=_profiles,
    ),
    Rule(
        id="profile-number",
        severity=Severity.ERROR,
        title="A profile is chosen by its number, from 0.",
        why="The model is not loaded.",
        mend="Write the number of a profile that the plan has.",
        server=Verdict.UNASKED,
        check=_profile_numbers,
    ),
    Rule(
        id="plan-on-cpu",
        severity=Severity.ERROR,
        title="TensorRT models run on GPUs.",
        why="TensorRT has nothing for a CPU: the model is not loaded.",
        mend="Write KIND_GPU, and gpus where not all should have one.",
        server=Verdict.UNASKED,
        check=_plan_on_cpu,
    ),
    Rule(
        id="gpu-for-cpu-engine",
        severity=Severity.WARNING,
        title="Instances of an engine that runs on a CPU are of KIND_CPU.",
        why="Such an instance leaves its GPU idle; where there is no GPU, the model is not loaded.",
        mend="Write KIND_CPU, or build with an engine for GPUs.",
        server=Verdict.REFUSES,
        check=_gpu_for_cpu,
    ),
    Rule(
        id="backend-misspelt",
        severity=Severity.ERROR,
        title="A backend is spelt as Triton spells it.",
        why="The model is not loaded.",
        mend="Write the backend's own name, in small letters; a platform is no backend.",
        server=Verdict.REFUSES,
        check=_spelling,
    ),
    Rule(
        id="backend-not-offered",
        severity=Severity.NOTE,
        title="The server that will run a model has its backend.",
        why="The model is not loaded there.",
        mend="Serve it in a container that has the backend (`--container` names one), or build "
        "with --triton-backend python.",
        server=Verdict.REFUSES,
        check=_backend,
    ),
)
