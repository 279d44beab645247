"""Refuses an engine that a GPU has no room for, before any of it is loaded."""

from __future__ import annotations

from iblip.engines.cuda.memory import GpuMemory, read_memory
from iblip.engines.memory import STEP, MemoryPlan, plan_of_build
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import EngineError
from iblip.export.messages import size_text


def check_free_memory(
    manifest: Manifest,
    component: str,
    device: int,
    *,
    slots: int | None = None,
    positions: int | None = None,
) -> None:
    """Raises EngineError if a component wants more than is free of its GPU.

    Nothing is made smaller instead: clients are told a build's limits, and what else runs on the
    card would change them from start to start (docs/decisions/0031). A build that did not record
    what it takes, and a GPU that cannot be asked, are not checked.

    Args:
        manifest: of the build.
        component: that is about to be opened.
        device: the GPU's number, from 0.
        slots, positions: of the language model, if those differ from the build's limits.
    """
    plan = plan_of_build(manifest, slots=slots, positions=positions)
    rows = {row.component: row for row in plan.components} if plan else {}
    if plan is None or component not in rows or (memory := read_memory(device)) is None:
        return
    row = rows[component]
    # Its process has been counted: CUDA was asked from within.
    least = row.weights + row.work
    caches = plan.caches if component == "language_model" else 0
    if least + caches > memory.free:
        raise EngineError(_describe(component, device, plan, least, caches, memory))


def _describe(
    component: str, device: int, plan: MemoryPlan, least: int, caches: int, memory: GpuMemory
) -> str:
    slots = f", {size_text(caches)} for {plan.slots} slots of {plan.positions:,} positions"
    return (
        f"{component} wants {size_text(least + caches)} of GPU {device} ({size_text(least)} for"
        f" weights and work{slots if caches else ''}), and {size_text(memory.free)} of its"
        f" {size_text(memory.total)} are free."
        f" {_advise(plan, memory.free - least) if caches else ''}Stop what else runs on it"
        " (nvidia-smi), or build for it: --gpu-memory, --precision, --max-batch of `iblip build`."
    )


def _advise(plan: MemoryPlan, room: int) -> str:
    """What fits into `room` bytes of keys and values."""
    slots = room // (plan.position * plan.positions)
    positions = room // (plan.position * plan.slots) // STEP * STEP
    fitting = [
        *([f"`slots` {slots}"] if slots > 0 else []),
        *([f"`max_length` {positions}"] if positions > 0 else []),
    ]
    if not fitting:
        return ""
    return f"{' or '.join(fitting)} in language_model/config.pbtxt fits. "
