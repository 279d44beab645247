"""What is bound, and how it is run."""

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

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        graph = options.get_run_config_entry("gpu_graph_id") if options else None
        self.told.append(("run", graph))
        if self.fails:
            raise RuntimeError("no kernel")


CACHE = DeviceArray(address=4096, shape=(2, 3), dtype=np.dtype(ml_dtypes.bfloat16), device=1)


def test_what_is_bound_stays_bound() -> None:
    session, array = Recorder(), np.zeros((2, 3), np.float16)
    binding = Binding(session, "g")
    binding.input("x", array)
    binding.input("past", CACHE)
    binding.output("present", CACHE)
    assert session.told == [
        ("input", "x", "cpu", 0, np.float16, (2, 3), array.ctypes.data),
        ("input", "past", "cuda", 1, 16, (2, 3), 4096),
        ("output", "present", "cuda", 1, 16, (2, 3), 4096),
    ]
    session.told.clear()
    binding.run()
    binding.run()
    assert session.told == [("run", None), ("run", None)]


def test_a_run_that_is_replayed_has_a_number() -> None:
    session = Recorder()
    for number in (3, -1):
        Binding(session, "g", replayed=number).run()
    assert session.told == [("run", "3"), ("run", "-1")]


def test_a_failure_is_named() -> None:
    session = Recorder()
    session.fails = True
    with pytest.raises(EngineError, match=r"ONNX Runtime failed in g \(no kernel\)"):
        Binding(session, "g").run()
