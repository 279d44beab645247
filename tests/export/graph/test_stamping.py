"""Deep graphs from shallow traces: they are those that a whole trace gives, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.component import Component
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.graph.stamping import UNITS, UnlikeError
from iblip.export.graph.tracing import trace, trace_blocks
from iblip.export.precision import PrecisionPolicy
from tests.cases import exhaustive

LAYERS = UNITS + 2
GRAPHS = {
    "vicuna": (
        "vision_encoder/model",
        "qformer/model",
        "language_model/decoder",
        "language_model/batched_decoder",
    ),
    "flant5": (
        "language_model/encoder",
        "language_model/decoder",
        "language_model/batched_decoder",
    ),
    "opt": ("qformer/model", "language_model/decoder", "language_model/batched_decoder"),
}


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


EACH_STACK = {
    ("vicuna", "vision_encoder/model", "fp32"),
    ("opt", "qformer/model", "fp16"),
    ("vicuna", "language_model/batched_decoder", "fp32"),
    ("flant5", "language_model/batched_decoder", "fp16"),
}
"""Each kind of stack once: of equal blocks, of every second one, of a first that is of its own, and
with keys and values a block; all graphs in both precisions are for an exhaustive run."""


def graphs() -> list[Any]:
    cases = [
        (kind, title, precision)
        for kind, titles in GRAPHS.items()
        for title in titles
        for precision in ("fp32", "fp16")
    ]
    assert set(cases) >= EACH_STACK
    return [case if case in EACH_STACK else exhaustive(*case) for case in cases]


@pytest.mark.parametrize(("kind", "title", "precision"), graphs())
def test_a_stamped_graph_is_the_traced_one(
    tiny: Callable[[str], Path], kind: str, title: str, precision: str
) -> None:
    checkpoint = checkpoint_from_directory(tiny(kind))
    config = checkpoint.config
    config.vision_config.num_hidden_layers = LAYERS
    config.qformer_config.num_hidden_layers = 2 * LAYERS - 2  # every second one is of its own kind
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if name in config.text_config.to_dict():
            setattr(config.text_config, name, LAYERS)
    components = components_from_checkpoint(checkpoint, PrecisionPolicy.parse(precision))
    component = next(one for one in components if one.title == title)
    stamped, whole = trace_blocks(component), trace_blocks(component, whole=True)
    assert serialised(stamped.model) == serialised(whole.model)
    assert stamped.weights == whole.weights
    assert stamped.parameters == whole.parameters


class Scaled(torch.nn.Module):
    """A block whose scale nothing but its graph tells."""

    def __init__(self, layer_idx: int, odd: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.layer_idx, self.odd = layer_idx, odd

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.linear(values) * (1.0 + self.odd * self.layer_idx)
        return made


class Stack(torch.nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(blocks)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            values = block(values)
        return values


def component(blocks: Callable[[], list[torch.nn.Module]]) -> Component:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", axes=("batch", 4))

    return Component(
        component="vision_encoder",
        graph="model",
        precision="fp32",
        contract=Contract(inputs=(spec("values"),), outputs=(spec("made"),)),
        kind=lambda: Stack(blocks()),
    )


def test_blocks_of_other_nodes_are_traced_whole() -> None:
    stack = component(lambda: [Scaled(index, odd=1) for index in range(LAYERS)])
    with pytest.raises(UnlikeError, match="layers"):
        trace_blocks(stack)
    assert serialised(trace(stack).model) == serialised(trace_blocks(stack, whole=True).model)


def test_blocks_with_other_settings_are_traced_whole() -> None:
    stack = component(lambda: [Scaled(index, odd=index == UNITS) for index in range(LAYERS)])
    found, wanted = trace_blocks(stack).model, trace_blocks(stack, whole=True).model
    assert serialised(found) == serialised(wanted)


def test_equal_blocks_are_not_traced_one_by_one() -> None:
    ran = []

    class Counted(Scaled):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            ran.append(self.layer_idx)
            return super().forward(values)

    found = trace_blocks(component(lambda: [Counted(index, odd=0) for index in range(40)]))
    assert set(ran) == set(range(UNITS))
    assert {f"layers.{index}.linear.weight" for index in range(40)} <= found.weights.keys()
    made = [value.name for node in found.model.graph for value in node.outputs]
    assert [f"layers.{index}.output" for index in range(39)] == [
        name for name in made if (name or "").endswith(".output")
    ]
