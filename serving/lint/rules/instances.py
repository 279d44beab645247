"""Rules about where a model's instances run, and about the server's backends."""

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
"""Backends in NVIDIA's current and former containers, and in Triton's own tests."""


def _check_gpus_without_gpu(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, kind, group in _groups(model):
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            line = model.line("instance_group", index, "gpus")
            yield Fault(f"{kind} with gpus {list(group.gpus)}", line)


def _check_profile_elsewhere(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, _, group in _groups(model):
        if group.profile and model.backend != "tensorrt":
            line = model.line("instance_group", index, "profile")
            yield Fault(f"profile on a model of the backend {model.backend!r}", line)


def _check_profile_number(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, _, group in _groups(model):
        for name in group.profile if model.backend == "tensorrt" else ():
            if not name.isdecimal():
                line = model.line("instance_group", index, "profile")
                yield Fault(f"there is no profile {name!r}; expected an index, from 0", line)


def _check_plan_on_cpu(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, kind, _ in _groups(model):
        if model.backend == "tensorrt" and kind == "KIND_CPU":
            line = model.line("instance_group", index, "kind")
            yield Fault("KIND_CPU on a TensorRT model", line)


def _check_gpu_for_cpu_engine(model: Model, repository: Repository) -> Iterator[Fault]:
    record = repository.record(model)
    for index, kind, _ in _groups(model):
        if record is not None and record.engine.kind == "onnxruntime" and kind == "KIND_GPU":
            line = model.line("instance_group", index, "kind")
            yield Fault(f"KIND_GPU, but {model.name} of this build runs on a CPU", line)


def _check_backend_not_offered(model: Model, repository: Repository) -> Iterator[Fault]:
    server = repository.server
    if _misspelt(model.backend):
        return
    if model.backend and not model.ensemble and model.backend not in server.backends:
        line = model.line("backend") if model.config.backend else model.line("platform")
        has = ", ".join(server.backends)
        yield Fault(f"{server.title} has no backend {model.backend!r}; it has {has}", line)


def _check_backend_misspelt(model: Model, repository: Repository) -> Iterator[Fault]:
    near = "" if model.ensemble else _misspelt(model.backend)
    if near:
        message = f"there is no backend {model.backend!r}. Did you mean {near!r}?"
        yield Fault(message, model.line("backend"))


def _misspelt(backend: str) -> str:
    """The Triton backend that a misspelt name means; empty for any other name.

    Custom backends are not known here, so only names very close to Triton's count as misspelt.
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
        title="Only instances of KIND_GPU or KIND_AUTO name GPUs.",
        why="The model is not loaded.",
        mend="Remove gpus, or write KIND_GPU.",
        server=Verdict.REFUSES,
        check=_check_gpus_without_gpu,
    ),
    Rule(
        id="profile-elsewhere",
        severity=Severity.ERROR,
        title="Only TensorRT models select a profile.",
        why="The model is not loaded.",
        mend="Remove profile.",
        server=Verdict.REFUSES,
        check=_check_profile_elsewhere,
    ),
    Rule(
        id="profile-number",
        severity=Severity.ERROR,
        title="A profile is selected by its index, from 0.",
        why="The model is not loaded.",
        mend="Write the index of a profile in the plan.",
        server=Verdict.UNASKED,
        check=_check_profile_number,
    ),
    Rule(
        id="plan-on-cpu",
        severity=Severity.ERROR,
        title="TensorRT models run on GPUs.",
        why="TensorRT does not run on CPUs: the model is not loaded.",
        mend="Write KIND_GPU, and gpus to use only some of them.",
        server=Verdict.UNASKED,
        check=_check_plan_on_cpu,
    ),
    Rule(
        id="gpu-for-cpu-engine",
        severity=Severity.WARNING,
        title="Instances of an engine that runs on a CPU have KIND_CPU.",
        why="Such an instance leaves its GPU idle; without a GPU, the model is not loaded.",
        mend="Write KIND_CPU, or build with an engine for GPUs.",
        server=Verdict.REFUSES,
        check=_check_gpu_for_cpu_engine,
    ),
    Rule(
        id="backend-misspelt",
        severity=Severity.ERROR,
        title="A backend is spelt as Triton spells it.",
        why="The model is not loaded.",
        mend="Write the backend's own name, in lower case; a platform is not a backend.",
        server=Verdict.REFUSES,
        check=_check_backend_misspelt,
    ),
    Rule(
        id="backend-not-offered",
        severity=Severity.NOTE,
        title="The server that will run a model has its backend.",
        why="The model is not loaded there.",
        mend="Serve it in a container that has the backend (check with `--container`), or build "
        "with --triton-backend python.",
        server=Verdict.REFUSES,
        check=_check_backend_not_offered,
    ),
)
