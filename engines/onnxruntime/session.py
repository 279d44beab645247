"""ONNX Runtime sessions and values: opened, checked against a contract, converted to numpy.

Importing this module does not load ONNX Runtime; opening a session does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.contract import Contract, TensorSpec
from export.errors import EngineError
from export.onnxruntime_values import session_from_onnx

CPU = ("CPUExecutionProvider",)

ONNX_TYPES = {
    "uint8": "tensor(uint8)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "float32": "tensor(float)",
}
"""A contract's dtypes as ONNX Runtime spells them."""


def open_session(
    path: Path,
    contract: Contract,
    *,
    threads: int | None = None,
    providers: Sequence[str] = CPU,
    spin: bool = True,
) -> Any:
    """An `onnxruntime.InferenceSession` whose inputs and outputs are those of the contract.

    ONNX Runtime maps the weights in files beside the graph into memory. Those that it does not
    rearrange for its kernels (on a CPU it rearranges matrices) stay so, shared between processes.

    Args:
        path: of the `.onnx` file.
        contract: what the graph must take and return.
        threads: for one operator; `None` takes one per core this process may use.
        providers: ONNX Runtime execution providers, the preferred first.
        spin: whether idle threads wait busily for the next call: quicker steps, one core each.

    Raises:
        EngineError: the file is missing or broken, a provider is not in this ONNX Runtime, or the
            graph is not what the contract says.
    """
    ort = load_onnxruntime()
    _check_providers(ort, providers)
    if not path.is_file():
        raise EngineError(f"there is no graph {path}. The build is incomplete: build it again.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        session = session_from_onnx(path, options, list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        message = f"ONNX Runtime cannot load {path} ({error}). Build it again."
        raise EngineError(message) from error
    _check_signature(path, session, contract)
    return session


def load_onnxruntime() -> Any:
    """The `onnxruntime` module. Raises `EngineError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"ONNX Runtime cannot be loaded ({error}). "
            "Install it with `pip install 'iblip[cpu]'` (or 'iblip[gpu]'; never both)."
        ) from error
    return onnxruntime


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_providers(ort: Any, providers: Sequence[str]) -> None:
    offered = ort.get_available_providers()
    for provider in providers:
        if provider not in offered:
            raise EngineError(
                f"this ONNX Runtime has no {provider}; it has {', '.join(offered)}. "
                "CUDA needs `onnxruntime-gpu` in place of `onnxruntime`."
            )


def _check_signature(path: Path, session: Any, contract: Contract) -> None:
    sides = (
        ("inputs", session.get_inputs(), contract.inputs),
        ("outputs", session.get_outputs(), contract.outputs),
    )
    for side, found, specs in sides:
        has = {tensor.name: (tensor.type, len(tensor.shape)) for tensor in found}
        wants = {spec.name: _signature(spec) for spec in specs}
        if has != wants:
            odd = sorted(has.items() ^ wants.items())
            raise EngineError(
                f"the {side} of {path} are not those of its contract; they differ in "
                f"{', '.join(sorted({name for name, _ in odd}))}. Build it again."
            )


def _signature(spec: TensorSpec) -> tuple[str, int]:
    return ONNX_TYPES[spec.dtype], len(spec.axes)
