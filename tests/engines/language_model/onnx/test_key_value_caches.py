"""Caches in the host's memory and in a device's: the same numbers at the same places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from iblip.engines.language_model.onnx.key_value_caches import DeviceCaches, HostCaches
from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.export.artifact.contract import TensorSpec
from iblip.export.errors import EngineError

SHAPE = (3, 2, 5, 4)  # [slots, heads, positions, head_dim]
AXES = ("batch", 2, "past", 4)
SPECS = (
    TensorSpec(name="past.key", dtype="float16", axes=AXES),
    TensorSpec(name="cross.key", dtype="bfloat16", axes=AXES),
)


@pytest.fixture
def both(host_device: Any) -> Iterator[tuple[HostCaches, DeviceCaches]]:
    device = DeviceCaches(SPECS, SHAPE, host_device, 0)
    yield HostCaches(SPECS, SHAPE), device
    device.close()
    assert not host_device.memory
    assert not host_device.streams


def content(caches: DeviceCaches, device: Any, name: str) -> np.ndarray:
    rows = caches.rows(name, 0, SHAPE[0])
    size = int(np.prod(rows.shape)) * rows.dtype.itemsize
    return device.bytes_at(rows.address, size).view(rows.dtype).reshape(rows.shape)


def test_writes_and_copies_go_to_the_same_places(
    both: tuple[HostCaches, DeviceCaches], host_device: Any
) -> None:
    rng = np.random.default_rng(0)
    host, device = both
    for caches in both:  # zero at first, so that what is masked is a number
        assert not np.asarray(host.buffers["past.key"]).any()
        assert not content(device, host_device, "past.key").any()
        assert list(caches.names) == ["past.key", "cross.key"]
    for row, count in ((0, 5), (1, 3), (2, 1)):
        for spec in SPECS:
            array = rng.standard_normal((1, 2, count, 4)).astype(spec.numpy_dtype)
            host.lend(spec.name, count)[spec.name][:] = array
            lent = device.lend(spec.name, count)[spec.name]
            host_device.bytes_at(lent.address, array.nbytes)[:] = array.view(np.uint8).ravel()
            for caches in both:
                caches.take(spec.name, count, row)
    copies = (0, 1, slice(1, 4)), (1, 2, slice(0, 5)), (2, 0, slice(3, 3)), (2, 1, slice(4, 2))
    for copy in copies:
        for caches in both:
            caches.copy("past", [copy])
    for caches in both:  # two of one source
        caches.copy("", [(0, 1, slice(0, 2)), (0, 2, slice(2, 5))])
    taken = 3 * len(SPECS)
    assert host_device.calls.count("copy_boxes") == taken + 3  # of the two that are empty, none
    for name, buffer in host.buffers.items():
        assert buffer.any()
        assert (content(device, host_device, name) == buffer).all()
    for caches in both:
        caches.clear(1)
    for name, buffer in host.buffers.items():
        assert [row.any() for row in buffer] == [True, False, True]
        assert (content(device, host_device, name) == buffer).all()


def test_rows_are_where_they_are(both: tuple[HostCaches, DeviceCaches]) -> None:
    _, device = both
    whole, some = device.rows("cross.key", 0, 3), device.rows("cross.key", 1, 2)
    assert isinstance(some, DeviceArray)
    assert some.shape == (2, 2, 5, 4)
    assert some.dtype == ml_dtypes.bfloat16
    assert some.address - whole.address == 2 * 5 * 4 * 2
    assert (some.memory, some.device) == ("cuda", 0)


def test_too_little_memory_gives_back_what_was_taken(host_device: Any) -> None:
    host_device.fails = "clear"
    with pytest.raises(EngineError, match="clear fails"):
        DeviceCaches(SPECS, SHAPE, host_device, 0)
    assert not host_device.memory


@pytest.mark.parametrize("slots", [10**9, 2**60])
def test_slots_that_no_process_can_hold_are_named(slots: int) -> None:
    with pytest.raises(EngineError, match=f"{slots} slots of 1000000 positions .*Build with fewer"):
        HostCaches(SPECS, (slots, 2, 10**6, 64))
