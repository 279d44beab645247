"""What is bound, and when: ONNX Runtime copies an input of other memory as it is bound."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from iblip.engines.onnxruntime.binding import Binding, DeviceArray
from iblip.export.errors import EngineError


class Recorder:
    """A session, and its `IOBinding`."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fails = False

    def io_binding(self) -> Any:
        return self

    def bind_input(self, *arguments: Any) -> None:
        self.told.append(("input", *arguments))

    def bind_output(self, *arguments: Any) -> None:
        self.told.append(("output", *arguments))

    def synchronize_outputs(self) -> None:
        self.told.append(("synchronize",))

    def run_with_iobinding(self, binding: Any) -> None:
        self.told.append(("run",))
        if self.fails:
            raise RuntimeError("no kernel")


CACHE = DeviceArray(address=4096, shape=(2, 3), dtype=np.dtype(ml_dtypes.bfloat16), device=1)


def test_inputs_of_the_host_are_bound_anew_for_every_run_on_a_gpu() -> None:
    session, array = Recorder(), np.zeros((2, 3), np.float16)
    binding = Binding(session, "g", memory="cuda")
    binding.input("x", array)
    binding.input("past", CACHE)
    binding.output("present", CACHE)
    assert session.told == [
        ("input", "past", "cuda", 1, 16, (2, 3), 4096),
        ("output", "present", "cuda", 1, 16, (2, 3), 4096),
    ]
    for _ in range(2):
        session.told.clear()
        binding.run()
        copied = ("input", "x", "cpu", 0, np.float16, (2, 3), array.ctypes.data)
        assert session.told == [copied, ("run",), ("synchronize",)]


def test_on_the_cpu_what_is_bound_stays_bound() -> None:
    session, array = Recorder(), np.zeros((2, 3), np.float32)
    binding = Binding(session, "g")
    binding.input("x", array)
    assert [told[0] for told in session.told] == ["input"]
    session.told.clear()
    binding.run()
    assert session.told == [("run",)]


def test_a_failure_is_named() -> None:
    session = Recorder()
    session.fails = True
    with pytest.raises(EngineError, match=r"ONNX Runtime failed in g \(no kernel\)"):
        Binding(session, "g").run()
