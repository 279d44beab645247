"""`smoke`: the machine, its driver and libraries, and whether memory and copies of a GPU work."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from iblip.engines.cuda.device import BoxCopy, CudaDevice, Device
from iblip.engines.cuda.errors import CudaError
from iblip.engines.hardware.nvidia import find_driver, find_runtime
from iblip.engines.kinds import KINDS
from iblip.engines.proofs import LIBRARIES
from iblip.export.system.toolchain import library_versions
from iblip.serving.proving.record import Fact
from iblip.serving.proving.subject import Subject

SIZE = 1 << 20
"""Bytes of a copy that is checked."""

TIMES = 1000
"""How often memory is taken and freed."""

KEPT = 16 << 20
"""Bytes that may be held after that: a driver grows its own tables once."""

TOO_MUCH = 1 << 50
"""Bytes that no GPU has."""


def check_machine(subject: Subject) -> Iterator[Fact]:
    """Says what the machine is, then tries what engines do with a GPU's memory."""
    yield Fact(name="Python", value=platform.python_version())
    for name, version in library_versions(LIBRARIES).items():
        yield Fact(name=name, value=version)
    for component, kind in subject.engines.items():
        obstacle = KINDS[kind].running_obstacle() if kind in KINDS else None
        yield Fact(name=f"{component} on {kind}", value=obstacle or "can run", wrong=bool(obstacle))
    driver = find_driver()
    if driver is None:
        yield Fact(name="NVIDIA driver", value="none")
    else:
        yield Fact(name="NVIDIA driver", value=f"{driver.version or 'unknown'}, CUDA {driver.cuda}")
        yield Fact(name="CUDA runtime", value=find_runtime() or "none")
        for gpu in driver.gpus:
            size = f"{gpu.memory / 2**30:.0f} GiB"
            yield Fact(name="GPU", value=f"{gpu.name}, {gpu.capability}, {size}")
    if not subject.on_gpu:
        yield Fact(name="memory of a GPU", value="not applicable: no engine of the build uses it")
        return
    device = CudaDevice()
    stream = device.open_stream()
    try:
        for name, check in CHECKS.items():
            fault = check(device, stream)
            yield Fact(name=name, value=fault or "as in numpy", wrong=bool(fault))
        yield from _check_held(device)
        yield _check_refusal(device)
    finally:
        device.close_stream(stream)


def _bytes(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)


def _differ(found: Any, expected: Any) -> str:
    wrong = int(np.count_nonzero(found != expected))
    return f"{wrong:,} of {expected.size:,} bytes differ" if wrong else ""


def _check_round_trip(device: Device, stream: int) -> str:
    sent, back = _bytes(SIZE), np.zeros(SIZE, np.uint8)
    address = device.allocate(SIZE)
    device.upload(address, sent, stream)
    device.download(back, address, stream)
    device.synchronize(stream)
    device.free(address)
    return _differ(back, sent)


def _check_clear(device: Device, stream: int) -> str:
    sent, back = _bytes(SIZE), np.zeros(SIZE, np.uint8)
    expected = sent.copy()
    expected[: SIZE // 2] = 0
    address = device.allocate(SIZE)
    device.upload(address, sent, stream)
    device.clear(address, SIZE // 2, stream)
    device.download(back, address, stream)
    device.synchronize(stream)
    device.free(address)
    return _differ(back, expected)


def _check_rows(device: Device, stream: int) -> str:
    """Uploads rows that lie apart, and copies their beginnings within the device."""
    rows, pitch, width = 16, 1024, 384
    sent = _bytes(rows * width).reshape(rows, width)
    expected = np.zeros((2, rows, pitch), np.uint8)
    expected[0, :, :width] = sent
    expected[1, :, : width // 2] = sent[:, : width // 2]
    back = np.full(expected.shape, 1, np.uint8)
    address = device.allocate(expected.nbytes)
    device.clear(address, expected.nbytes, stream)
    device.upload_rows(address, sent, pitch=pitch, stream=stream)
    half = BoxCopy(target=address + rows * pitch, source=address, width=width // 2)
    device.copy_boxes([half], pitch=pitch, rows=rows, layer=rows * pitch, layers=1, stream=stream)
    device.download(back, address, stream)
    device.synchronize(stream)
    device.free(address)
    return _differ(back, expected)


def _check_pinned(device: Device, stream: int) -> str:
    pinned, sent = device.allocate_pinned(SIZE), _bytes(SIZE)
    pinned[:] = sent
    back, address = np.zeros(SIZE, np.uint8), device.allocate(SIZE)
    device.upload(address, pinned, stream)
    device.download(back, address, stream)
    device.synchronize(stream)
    device.free(address)
    device.free_pinned(pinned)
    return _differ(back, sent)


def _check_graph(device: Device, stream: int) -> str:
    """Captures a clearing, and launches it after the memory has been written."""
    sent, back = _bytes(SIZE), np.ones(SIZE, np.uint8)
    address = device.allocate(SIZE)
    graph = device.capture(stream, lambda: device.clear(address, SIZE, stream))
    device.upload(address, sent, stream)
    device.launch(graph, stream)
    device.download(back, address, stream)
    device.synchronize(stream)
    device.forget(graph)
    device.free(address)
    return _differ(back, np.zeros_like(back))


CHECKS: Mapping[str, Callable[[Device, int], str]] = {
    "upload and download": _check_round_trip,
    "clear": _check_clear,
    "rows apart": _check_rows,
    "pinned memory": _check_pinned,
    "a captured copy": _check_graph,
}
"""What is tried on a GPU: each returns what is wrong, or nothing."""


def _check_held(device: Device) -> Iterator[Fact]:
    before = free_memory()
    for _ in range(TIMES):
        device.free(device.allocate(SIZE))
    held = before - free_memory()
    yield Fact(name=f"bytes held after {TIMES:,} allocations were freed", value=held, limit=KEPT)


def _check_refusal(device: Device) -> Fact:
    """Too much memory is refused by name, and the device can be used afterwards."""
    name = "an allocation that no GPU can give"
    try:
        device.free(device.allocate(TOO_MUCH))
    except CudaError as error:
        device.free(device.allocate(SIZE))
        return Fact(name=name, value=f"refused with {error.name}")
    return Fact(name=name, value="given", wrong=True)


def free_memory() -> int:
    """Bytes that are free on the first GPU, whoever uses the rest."""
    from cuda.bindings import runtime

    from iblip.engines.cuda.errors import call_checked

    free, _ = call_checked(runtime, "cudaMemGetInfo")
    return int(free)
