"""What the stub CUDA libraries of this process counted, and what they are told to do.

`c/stub.h` lists the counters and the settings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def read_counters() -> dict[str, int]:
    """Every counter by name, since the process began."""
    library, counters = _library(), {}
    while name := library.stub_counter_name(ctypes.c_size_t(len(counters))):
        counters[name.decode()] = library.stub_counter(name)
    return counters


class Counts(dict[str, int]):
    """What each counter rose by; filled when the block of `counted` ends."""

    @property
    def copies(self) -> int:
        """All copies that a call of their own asked for, in any direction."""
        kinds = ("host_to_device", "device_to_host", "device_to_device", "host_to_host")
        return sum(self[kind] for kind in kinds)

    @property
    def calls(self) -> int:
        """Everything that the device was told to do: launches, copies, memsets, graphs."""
        return self.copies + self["launches"] + self["memsets"] + self["graph_launches"]


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what the block does to the device, by all threads of the process."""
    before, counts = read_counters(), Counts()
    yield counts
    counts.update({name: value - before[name] for name, value in read_counters().items()})


@contextmanager
def settings(**values: int) -> Iterator[None]:
    """Changes settings within the block: `settings(other_bytes=10**9)`.

    Args:
        values: of `total_bytes`, `other_bytes`, `devices`, `fail_after` and `fail_with`.
    """
    library = _library()
    defaults = {name: library.stub_setting(name.encode()) for name in values}
    try:
        _set(library, values)
        yield
    finally:
        _set(library, defaults)


def _set(library: Any, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        if not library.stub_set(name.encode(), ctypes.c_longlong(value)):
            raise KeyError(f"the stubs have no setting {name}")


def _library() -> Any:
    library = ctypes.CDLL("libcudart.so.13")
    library.stub_counter_name.restype = ctypes.c_char_p
    library.stub_counter.restype = library.stub_setting.restype = ctypes.c_longlong
    return library
