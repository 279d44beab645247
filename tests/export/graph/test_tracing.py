"""What a process does once for all graphs that it traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.onnx._internal.exporter import _registration

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.graph.tracing import trace
from iblip.export.precision import PrecisionPolicy


def test_the_exporters_operators_are_read_once(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_from_directory(tiny("vicuna"))
    components = components_from_checkpoint(checkpoint, PrecisionPolicy.parse("fp32"))
    component = next(one for one in components if one.graph == "embed_tokens")
    own = _registration.ONNXRegistry.from_torchlib
    first = trace(component).model

    def refuse() -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", refuse)
    second = trace(component).model
    assert [node.op_type for node in first.graph] == [node.op_type for node in second.graph]
    assert _registration.ONNXRegistry.from_torchlib == own  # what others use is torch's own
