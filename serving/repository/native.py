"""The configs of Triton's own backends for an engine that no Python model runs.

The build decides them from the engine's record: none of it is policy. What the operator wrote
stays: the number of instances, their GPUs, whether to record CUDA graphs, and warm-ups besides
those of the profiles. No server with these backends has run them yet (docs/evidence.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iblip.engines.hardware.compatibility import TRITON_FLAG, VERSION_COMPATIBLE
from iblip.engines.kinds import runs_on_gpu
from iblip.engines.onnxruntime.providers import PROVIDERS, Placement
from iblip.engines.tensorrt.profile import profile_from_json
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import EngineRecord, Manifest
from iblip.export.errors import OptionError, ServingError
from iblip.export.precision import PrecisionPolicy
from iblip.serving.repository.model_config import ModelConfig, set_parameter
from iblip.serving.repository.profiles import (
    BATCH,
    cut_warm_ups,
    profiles_of,
    record_graphs,
    warm_up,
)

AUTO, PYTHON, NATIVE = "auto", "python", "native"
CHOICES = (AUTO, PYTHON, NATIVE)
"""`--triton-backend`: `auto` is `native` for TensorRT plans, and `python` for everything else."""

ENGINE_CACHE = Path("/tmp/iblip-engines")
"""Where ONNX Runtime's TensorRT provider keeps the plans that it builds. The operator may change
it: on a volume they outlive the container."""

NUMBERED: Mapping[str, Sequence[str]] = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
}
"""Options of the CUDA provider that Triton takes by their index, as parameters of the model. It
takes them as options of the accelerator too, but overrides them with its defaults as soon as the
model has any parameter (onnxruntime_backend, src/onnxruntime.cc)."""

ARENA = {"arena_extend_strategy": "kSameAsRequested"}
"""Weights lie in the arena there, which would take up to twice their size in powers of two. In
process they do not (`engines.onnxruntime.session.settle_memory`)."""

NOT_CACHED = (
    "Triton's response cache keeps only what lies in the host's memory, and the outputs of its "
    "`tensorrt` backend stay on the GPU: every question encodes its image again. For many "
    "questions about one image, build with --engine onnxruntime-cuda or --triton-backend python."
)
"""Of plans in Triton's own backend (decision 18)."""

SET_BY_TRITON = ("device_id", "trt_fp16_enable")
"""Provider options that Triton sets itself, from the instance's GPU and `precision_mode`."""


@dataclass(frozen=True, kw_only=True)
class Native:
    """One row of `ENGINES`.

    Attributes:
        setting: the field that names the backend, and its value.
        fill: fills in the rest of the config from the engine's record and the graph's contract.
    """

    setting: tuple[str, str]
    fill: Callable[[ModelConfig, EngineRecord, Contract], None]


def backend_for(kind: str, requested: str = AUTO) -> str:
    """`PYTHON` or `NATIVE`, for a kind of engine.

    Args:
        kind: an `EngineRecord.kind`.
        requested: one of `CHOICES`.

    Raises:
        OptionError: `requested` is not one of these, or Triton has no backend for the kind.
    """
    if requested not in CHOICES:
        known = ", ".join(CHOICES)
        raise OptionError(f"--triton-backend is {requested!r}; expected one of {known}")
    if requested == AUTO:
        return NATIVE if kind == "tensorrt" else PYTHON
    if requested == NATIVE and kind not in ENGINES:
        raise OptionError(
            f"--triton-backend native: Triton has no backend of its own for --engine {kind}, only "
            f"for {', '.join(ENGINES)}. Use one of these engines, or --triton-backend python."
        )
    return requested


def check_native(kind: str, backend: str, policy: PrecisionPolicy) -> None:
    """Refuses what Triton's own backends cannot run, before anything is built.

    Args:
        kind: of the components' engine.
        backend: `PYTHON` or `NATIVE`.
        policy: the precision of each component.

    Raises:
        OptionError: a precision whose graphs the backend cannot open.
    """
    if backend == PYTHON or kind == "tensorrt":
        return
    for component in ("vision_encoder", "qformer"):
        if policy.word(component) == "bf16":
            raise OptionError(
                f"--triton-backend native with {component}=bf16: ONNX Runtime cannot open a bf16 "
                "graph directly. A Python model opens it with casts; Triton's own backend does "
                "not. Use fp16, or --triton-backend python."
            )


def remark_on_native(kind: str, backend: str) -> str | None:
    """What the user should know of a backend of Triton's own; `None` if nothing.

    Args:
        kind: of the components' engine.
        backend: `PYTHON` or `NATIVE`.
    """
    if backend == NATIVE and kind == "tensorrt":
        return NOT_CACHED
    return None


def set_engine(config: ModelConfig, record: EngineRecord, *, backend: str, max_batch: int) -> None:
    """Sets a component's backend, the place of its instances, and its largest batch.

    Args:
        config: the component's.
        record: of its engine.
        backend: `PYTHON` or `NATIVE`.
        max_batch: the largest batch of one run, in rows.

    Raises:
        ServingError: the engine's profiles do not reach that batch.
    """
    profiles = profiles_of(record)
    most = max((sizes[BATCH][-1] for sizes in profiles if BATCH in sizes), default=max_batch)
    if max_batch > most:
        raise ServingError(
            f"the engine of {config.name} takes batches up to {most}, but the build asks for "
            f"{max_batch}. Rebuild with --max-batch {max_batch}."
        )
    config.max_batch_size = max_batch
    row = ENGINES[record.kind] if backend == NATIVE else IN_PYTHON
    config.ClearField("backend")
    config.ClearField("platform")
    setattr(config, *row.setting)
    place_instances(config, record.kind)


def place_instances(config: ModelConfig, kind: str, *, alone: bool = False) -> None:
    """Puts a model's instances where its engine runs: on GPUs, or on the CPU.

    GPUs that the operator named stay, unless the engine runs on the CPU. If none are named, each
    group has its instances on every GPU that the server finds.

    Args:
        config: of the model.
        kind: of its engine.
        alone: whether the model must have a single instance; it then runs on the first GPU unless
            the operator names another.
    """
    from tritonclient.grpc import model_config_pb2

    groups = model_config_pb2.ModelInstanceGroup
    for group in config.instance_group:
        if not runs_on_gpu(kind):
            group.kind = groups.KIND_CPU
            group.ClearField("gpus")
            continue
        group.kind = groups.KIND_GPU
        if alone and not group.gpus:
            group.gpus.append(0)


def fill_native(
    config: ModelConfig, record: EngineRecord, contract: Contract, backend: str
) -> None:
    """Fills in everything else that the engine decides; the tensors are already set."""
    cut_warm_ups(config, record, contract)
    if backend == NATIVE:
        ENGINES[record.kind].fill(config, record, contract)
    if config.platform != "tensorrt_plan":
        config.optimization.ClearField("cuda")  # only plans use CUDA graphs
        if not config.optimization.ListFields():
            config.ClearField("optimization")


def flags_for(manifest: Manifest) -> tuple[str, ...]:
    """The flags that Triton needs to load a build's engines."""
    records = [record.engine for record in manifest.components.values()]
    compatible = any(VERSION_COMPATIBLE in record.details.get("flags", ()) for record in records)
    return (TRITON_FLAG,) if compatible else ()


def _fill_plan(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    numbers = [str(number) for number in range(len(profiles_of(record)))]
    for group in config.instance_group:
        if not group.profile:  # all of them: Triton selects the best for each batch
            group.profile.extend(numbers)
    warm_up(config, record, contract)
    if config.optimization.cuda.graphs:
        record_graphs(config, profiles_of(record), contract)


def _fill_cpu(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    threads = config.parameters["threads"].string_value if "threads" in config.parameters else "0"
    for name, value in (
        ("intra_op_thread_count", threads),
        ("inter_op_thread_count", "1"),
        ("enable_mem_arena", "1"),
    ):
        if name not in config.parameters:
            set_parameter(config, name, value)


def _fill_cuda(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    given = PROVIDERS["onnxruntime-cuda"].options(Placement(kind="onnxruntime-cuda"))
    options = {name: value for name, value in given.items() if name not in SET_BY_TRITON} | ARENA
    for name in NUMBERED.keys() & options.keys():
        value = options.pop(name)
        if name not in config.parameters:
            set_parameter(config, name, str(NUMBERED[name].index(value)))
    _accelerate(config, "cuda", options)


def _fill_tensorrt(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    profiles = profiles_of(record)
    placement = Placement(
        kind=record.kind,
        shapes=profile_from_json(profiles[0]).all_shapes(contract) if profiles else {},
        cache=ENGINE_CACHE,
    )
    given = PROVIDERS[record.kind].options(placement)
    options = {name: value for name, value in given.items() if name not in SET_BY_TRITON}
    # Not below the graph's own dtypes. The prefix keeps components apart in one folder.
    options |= {"precision_mode": "FP32", "trt_engine_cache_prefix": config.name}
    _accelerate(config, "tensorrt", options)
    _fill_cuda(config, record, contract)  # for what TensorRT does not take
    warm_up(config, record, contract)


def _accelerate(config: ModelConfig, name: str, options: Mapping[str, str]) -> None:
    """Sets options of one accelerator; those that the operator wrote stay."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    existing = next((entry for entry in accelerators if entry.name == name), None)
    accelerator = accelerators.add(name=name) if existing is None else existing
    for key, value in options.items():
        if key not in accelerator.parameters:
            accelerator.parameters[key] = value


IN_PYTHON = Native(setting=("backend", "python"), fill=lambda *_: None)
"""How a Python model runs any engine."""

ENGINES: Mapping[str, Native] = {
    "tensorrt": Native(setting=("platform", "tensorrt_plan"), fill=_fill_plan),
    "onnxruntime": Native(setting=("backend", "onnxruntime"), fill=_fill_cpu),
    "onnxruntime-cuda": Native(setting=("backend", "onnxruntime"), fill=_fill_cuda),
    "onnxruntime-tensorrt": Native(setting=("backend", "onnxruntime"), fill=_fill_tensorrt),
}
"""How Triton's own backends run each kind of engine. It has none for TensorRT-RTX."""
