"""Loads a plan into the library that built it, and checks it against its record and contract."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.engines.hardware.compatibility import VERSION_COMPATIBLE, loads_version
from iblip.engines.tensorrt.collection import no_collection
from iblip.engines.tensorrt.kernels import KernelCache
from iblip.engines.tensorrt.libraries import DTYPES, Library
from iblip.engines.tensorrt.log import library_log
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.errors import EngineError

STRIPPED = "strip-plan"
"""The flag of a plan without weights (`EngineRecord.details["flags"]`)."""


@dataclass(frozen=True, kw_only=True)
class LoadedPlan:
    """A plan loaded into the library, ready for execution contexts.

    Attributes:
        path: of the file.
        library: the library that loaded it.
        runtime: the library's `IRuntime`, which must outlive the engine.
        engine: the library's `ICudaEngine`.
        messages: the library's error messages since it was loaded, newest last.
        kernels: where TensorRT-RTX keeps what it compiles; `None` keeps nothing.
    """

    path: Path
    library: Library
    runtime: Any
    engine: Any
    messages: list[str]
    kernels: KernelCache | None = None

    def fault(self, what: str) -> EngineError:
        """An error for `what` failed, with the library's error messages, which are then cleared."""
        reasons = "; ".join(self.messages) or "it gave no reason"
        self.messages.clear()
        return EngineError(f"{self.library.kind} {what} of {self.path}: {reasons}")


def check_record(path: Path, record: EngineRecord, library: Library) -> None:
    """Refuses a plan that the installed library cannot load, before loading it.

    Args:
        path: of the plan, for messages.
        record: of the engine.
        library: the installed one, of the record's kind.

    Raises:
        EngineError: the plan is of another version, or has no weights.
    """
    details = record.details
    built, flags = str(details.get("version", "")), tuple(details.get("flags", ()))
    if not built:
        raise EngineError(
            f"the manifest does not say which {record.kind} built {path}. Build it again."
        )
    if not loads_version(built, library.version, flags):
        raise EngineError(
            f"{path} was built by {record.kind} {built}; {library.version} is installed, which "
            f"cannot load it. Install that version, or build again with --engine {record.kind}."
        )
    if STRIPPED in flags:
        raise EngineError(
            f"{path} was built without its weights (--builder-flag {STRIPPED}), and this runner "
            "does not add them. Build it without that flag."
        )


def load_plan(path: Path, record: EngineRecord, contract: Contract, library: Library) -> LoadedPlan:
    """Reads a plan into the library.

    Args:
        path: of the plan.
        record: of the engine; `check_record` has passed it.
        contract: the graph's inputs and outputs.
        library: as `find_library` returns it.

    Raises:
        EngineError: the file is missing, the library cannot read it (the message has its reasons),
            or its tensors are not the contract's.
    """
    plan = open_plan(path, record.details.get("flags", ()), library)
    _check_tensors(plan, contract)
    return plan


@no_collection()
def open_plan(path: Path, flags: Collection[str], library: Library) -> LoadedPlan:
    """Reads any plan into the library, without a contract.

    Args:
        path: of the plan.
        flags: the flags that it was built with, keys of `engines.tensorrt.options.FLAGS`.
        library: as `find_library` returns it.

    Raises:
        EngineError: the file is missing, or the library cannot read it (with its reasons).
    """
    if not path.is_file():
        raise EngineError(f"there is no plan {path}. The build is incomplete: build it again.")
    messages: list[str] = []
    runtime = library.module.Runtime(library_log(library.module, messages))
    if VERSION_COMPATIBLE in flags:
        runtime.engine_host_code_allowed = True  # such a plan contains the runtime that it needs
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    plan = LoadedPlan(path=path, library=library, runtime=runtime, engine=engine, messages=messages)
    if engine is None:
        raise plan.fault("cannot load the plan")
    return plan


def _check_tensors(plan: LoadedPlan, contract: Contract) -> None:
    engine, modes = plan.engine, plan.library.module.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    actual = {
        name: (engine.get_tensor_mode(name).name, *_signature(engine, name)) for name in names
    }
    expected = {
        spec.name: (mode.name, DTYPES[spec.dtype], len(spec.axes))
        for mode, specs in ((modes.INPUT, contract.inputs), (modes.OUTPUT, contract.outputs))
        for spec in specs
    }
    odd = sorted({name for name, _ in actual.items() ^ expected.items()})
    if odd:
        raise EngineError(
            f"the tensors of {plan.path} are not those of its contract; they differ in "
            f"{', '.join(odd)}: {[actual.get(name) for name in odd]}, expected "
            f"{[expected.get(name) for name in odd]}. Build it again."
        )


def _signature(engine: Any, name: str) -> tuple[str, int]:
    return engine.get_tensor_dtype(name).name, len(tuple(engine.get_tensor_shape(name)))
