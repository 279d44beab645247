"""ONNX Runtime sessions and values: opened, checked against a contract, converted to numpy.

Importing this module does not load ONNX Runtime; opening a session does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iblip.engines.hardware.nvidia import find_driver
from iblip.engines.onnxruntime.assignment import RECORDED, check_assignment
from iblip.engines.onnxruntime.probing import provider_obstacle
from iblip.engines.onnxruntime.providers import CPU, PROVIDERS, Placement
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.errors import EngineError
from iblip.export.graph.onnxruntime_values import session_from_onnx
from iblip.export.system.installing import install_command

ONNX_TYPES = {
    "uint8": "tensor(uint8)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "float32": "tensor(float)",
}
"""A contract's dtypes as ONNX Runtime spells them."""


SMALL_BYTES = 32 << 20
"""Size of a graph and its weights below which more threads only cost time: a processor's cache
holds it, and an operator has ended before another core has woken up for its part."""


def open_session(
    path: Path,
    contract: Contract,
    *,
    threads: int | None = None,
    placement: Placement = CPU,
    spin: bool = True,
) -> Any:
    """An `onnxruntime.InferenceSession` whose inputs and outputs are those of the contract.

    ONNX Runtime maps the weights in files beside the graph into memory. Weights that it does not
    rearrange for its kernels stay mapped, shared between processes. On a CPU it rearranges
    matrices.

    Args:
        path: of the `.onnx` file.
        contract: the inputs and outputs that the graph must have.
        threads: for one operator; `None` takes one per core this process may use, or a single one
            for a small graph.
        placement: the execution provider, its device and its options.
        spin: whether idle threads wait busily during a run: quicker steps, one core each.

    Raises:
        EngineError: the file is missing or broken, the provider cannot run here (with the reason,
            and what to do) or leaves attention or products to the CPU, or the graph's inputs and
            outputs are not the contract's.
    """
    ort = load_onnxruntime()
    check_placement(placement)
    if not path.is_file():
        raise EngineError(f"there is no graph {path}. The build is incomplete: build it again.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or suitable_threads(path)
    options.inter_op_num_threads = 1
    # Errors: its warnings are about its own optimisations, and about nodes on the CPU
    # (`check_assignment` tells those that matter).
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # Threads that went on spinning after a run would take the cores from what comes next: other
    # graphs, and under Triton the other steps.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(RECORDED, "1")
    if placement.memory != "cpu":
        settle_memory(options)
    try:
        session = session_from_onnx(path, options, offer_providers(ort, options, placement))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        message = f"ONNX Runtime cannot load {path} ({error}). Build it again."
        raise EngineError(message) from error
    _check_providers(path, session, placement)
    if placement.kind != CPU.kind:
        check_assignment(path, session, placement)
    _check_signature(path, session, contract)
    return session


def settle_memory(options: Any) -> None:
    """Has a session on a GPU take its weights' size exactly, and reuse what its runs work in.

    The arena grows to powers of two, so weights stay out of it. ONNX Runtime's memory patterns plan
    one block a shape: a longer prompt fits no block of those before it.
    """
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.enable_mem_pattern = False


def load_onnxruntime() -> Any:
    """The `onnxruntime` module. Raises `EngineError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"ONNX Runtime cannot be loaded ({error}). "
            f"Install it with `{install_command('cpu')}` (or the extra gpu; never both)."
        ) from error
    return onnxruntime


def suitable_threads(path: Path) -> int:
    """How many threads an operator of the graph at `path` is worth; its weights lie beside it."""
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    return available_cores() if size >= SMALL_BYTES else 1


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_placement(placement: Placement) -> None:
    """Raises `EngineError` if the provider or its GPU is not here, with what to do."""
    obstacle = provider_obstacle(placement.kind)
    if obstacle is not None:
        name = placement.provider.name
        raise EngineError(
            f"{name} cannot run here: {obstacle} A build for {placement.kind} runs on a machine "
            "that has what it needs; on this one, build with --engine onnxruntime."
        )
    if placement.kind != CPU.kind:
        driver = find_driver()
        count = len(driver.gpus) if driver else 0
        if placement.device >= count:
            raise EngineError(
                f"GPU {placement.device} was asked for; the driver names {count}, counted from 0. "
                "Choose one of these, or look at CUDA_VISIBLE_DEVICES."
            )


def offer_providers(
    ort: Any, options: Any, placement: Placement
) -> list[tuple[str, dict[str, str]]]:
    """The providers of a new session and their options, the preferred provider first.

    A provider that comes as a plug-in is added to the session's options instead.
    """
    kinds = [placement.kind, *placement.provider.behind]
    chain = [] if placement.kind == CPU.kind else [PROVIDERS[kind] for kind in kinds]
    listed = []
    for provider in chain:
        settings = provider.options(placement)
        if provider.plugin is None:
            listed.append((provider.name, settings))
        else:
            devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.name]
            chosen = devices[placement.device : placement.device + 1]
            options.add_provider_for_devices(chosen, settings)
    if len(listed) < len(chain):
        return []  # ONNX Runtime takes either plug-ins or a list
    return [*listed, (CPU.provider.name, {})]


def _check_providers(path: Path, session: Any, placement: Placement) -> None:
    """Refuses a session whose provider ONNX Runtime dropped because it failed to start."""
    has = session.get_providers()
    if placement.provider.name not in has:
        raise EngineError(
            f"ONNX Runtime opened {path} without {placement.provider.name}, on {', '.join(has)}: "
            "the provider did not start. Its message is above, on standard error."
        )


def _check_signature(path: Path, session: Any, contract: Contract) -> None:
    sides = (
        ("inputs", session.get_inputs(), contract.inputs),
        ("outputs", session.get_outputs(), contract.outputs),
    )
    for side, tensors, specs in sides:
        actual = {tensor.name: (tensor.type, len(tensor.shape)) for tensor in tensors}
        expected = {spec.name: _signature(spec) for spec in specs}
        if actual != expected:
            odd = sorted(actual.items() ^ expected.items())
            raise EngineError(
                f"the {side} of {path} are not those of its contract; they differ in "
                f"{', '.join(sorted({name for name, _ in odd}))}. Build it again."
            )


def _signature(spec: TensorSpec) -> tuple[str, int]:
    return ONNX_TYPES[spec.dtype], len(spec.axes)
