"""ONNX Runtime's attention over slots as an operator of an OpenVINO model.

Importing this module loads OpenVINO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from openvino import Op
from openvino.opset13 import constant

from iblip.engines.onnxruntime.binding import Binding
from iblip.engines.onnxruntime.session import load_onnxruntime

Array = npt.NDArray[Any]

NAME, DOMAIN = "GroupQueryAttention", "com.microsoft"

INPUTS = (
    *("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
    *("cos_cache", "sin_cache", "position_ids", "attention_bias"),
)
"""The operator's inputs, in order."""

ATTRIBUTES: Mapping[str, type[int] | type[float]] = {
    "num_heads": int,
    "kv_num_heads": int,
    "scale": float,
    "causal": int,
    "do_rotary": int,
}
"""The attributes that `export.components.slots` sets."""

OPSET = 20
IR_VERSION = 10


@dataclass(frozen=True)
class Layer:
    """One attention of a model.

    Attributes:
        attributes: of `ATTRIBUTES`, by name.
        slots: past keys and values, and the bound of lengths: inputs of the operator to those of
            the graph, whose memory is bound.
        computed: inputs that the model computes, in the order of the operator's arguments.
        constants: inputs that are constants.
    """

    attributes: tuple[tuple[str, int | float], ...]
    slots: Mapping[str, str]
    computed: tuple[str, ...]
    constants: Mapping[str, Array]

    @property
    def causal(self) -> bool:
        """Whether it adds new keys and values to its slots."""
        return bool(dict(self.attributes)["causal"])


class Attention(Op):  # type: ignore[misc]
    """The operator: `query` and whatever else the model computes, to an array like `query`.

    OpenVINO clones it, so what it runs is passed on from one to the next.

    Args:
        inputs: `Layer.computed`, as outputs of OpenVINO's nodes.
        index: of its layer.
        runner: calls ONNX Runtime for it.
    """

    def __init__(self, inputs: Any, index: int, runner: AttentionRunner) -> None:
        super().__init__(self)
        self._index, self._runner = index, runner
        self._shaped: Attention | None = None
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()
        runner.operators.append(self)

    def validate_and_infer_types(self) -> None:
        """The result is like the query."""
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: Any) -> Attention:
        """The same attention over other inputs.

        At every run OpenVINO makes a clone over constants, of which it asks the shape of the
        result. It never frees an operator that Python has made, nor its inputs, so this clone is
        made once.
        """
        if any(one.get_node().get_type_name() != "Constant" for one in inputs):
            return Attention(inputs, self._index, self._runner)
        if self._shaped is None:
            self._shaped = Attention(inputs, self._index, self._runner)
        else:
            self._shaped.set_arguments(inputs)
            self._shaped.constructor_validate_and_infer_types()
        return self._shaped

    def has_evaluate(self) -> bool:
        """It has."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Runs on the tensors' own memory; without slots, to no purpose but the weights'."""
        if not self._runner.bound:
            outputs[0].data[...] = 0
            return True
        self._runner(self._index, outputs[0].data, [tensor.data for tensor in inputs])
        return True


class AttentionRunner:
    """Calls ONNX Runtime for the attention of each layer, over whatever slots are bound.

    Args:
        threads: for one call.

    Attributes:
        layers: in the order of `Attention`'s indices.
        operators: that call it.
        weights: what owns memory that constants of the model share.
        bound: the graph's inputs that are slots or bounds of lengths, by name, for the next run.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.layers: list[Layer] = []
        self.operators: list[Attention] = []
        self.weights: list[Any] = []
        self.bound: Mapping[str, Array] = {}
        self._bindings: dict[int, Binding] = {}
        self._slots: dict[tuple[int, str], Array] = {}

    @property
    def slots(self) -> frozenset[str]:
        """The graph's inputs that attention alone reads."""
        return frozenset(name for layer in self.layers for name in layer.slots.values())

    def __call__(self, index: int, mixed: Array, computed: list[Array]) -> None:
        """Runs one layer.

        Args:
            index: of the layer.
            mixed: `[batch, sequence, heads * head_dim]`: is written.
            computed: the layer's `computed`.
        """
        layer = self.layers[index]
        binding = self._bindings.get(index) or self._open(index)
        for name, source in layer.slots.items():
            array = self.bound[source]
            if self._slots.get((index, name)) is not array:
                self._slots[index, name] = array
                binding.input(name, array)
                if layer.causal and name.startswith("past_"):
                    binding.output(name.replace("past", "present"), array)
        for name, array in zip(layer.computed, computed, strict=True):
            binding.input(name, array)
        binding.output("mixed", mixed)
        binding.run()

    def close(self) -> None:
        """Frees what operators hold: slots, and by their inputs the graph with its weights.

        OpenVINO itself never frees an operator that Python has made.
        """
        for operator in self.operators:
            operator.set_arguments([])
        self.operators.clear()
        self.weights.clear()
        self.layers.clear()
        self.bound = {}
        self._bindings.clear()
        self._slots.clear()

    def _open(self, index: int) -> Binding:
        layer = self.layers[index]
        names = frozenset({*layer.slots, *layer.computed, *layer.constants})
        session = _session(layer.attributes, names, self._threads)
        binding = Binding(session, f"the attention of layer {index}")
        for name, array in layer.constants.items():
            binding.input(name, array)
        self._bindings[index] = binding
        return binding


@cache
def _session(
    attributes: tuple[tuple[str, int | float], ...], names: frozenset[str], threads: int
) -> Any:
    """A session of the operator alone, which layers share."""
    ort = load_onnxruntime()
    integers = {"seqlens_k", "total_sequence_length"}
    inputs = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.INT32 if name in integers else ir.DataType.FLOAT),
            shape=ir.Shape([None] * RANKS[name]),
        )
        if name in names
        else None
        for name in INPUTS
    ]
    while inputs[-1] is None:
        inputs.pop()
    results = ["mixed", "present_key", "present_value"] if dict(attributes)["causal"] else ["mixed"]
    outputs = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([None] * (3 if name == "mixed" else 4)),
        )
        for name in results
    ]
    node = ir.node(NAME, inputs, dict(attributes), domain=DOMAIN, version=1, outputs=outputs)
    graph = ir.Graph(
        [value for value in inputs if value is not None],
        outputs,
        nodes=[node],
        opset_imports={"": OPSET, DOMAIN: 1},
        name="attention",
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # OpenVINO's threads compute between two calls, and waiting ones would take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


RANKS: Mapping[str, int] = {
    **dict.fromkeys(("query", "key", "value"), 3),
    **dict.fromkeys(("past_key", "past_value", "attention_bias"), 4),
    **dict.fromkeys(("seqlens_k", "total_sequence_length"), 1),
    **dict.fromkeys(("cos_cache", "sin_cache", "position_ids"), 2),
}
"""Number of axes of each of `INPUTS`."""


def convert(runner: AttentionRunner, node: Any) -> list[Any]:
    """Converts one node of the ONNX graph; OpenVINO's frontend calls it.

    Args:
        runner: is given the layer.
        node: OpenVINO's context of the node: its attributes, and its inputs as outputs of nodes.
    """
    values = {
        name: value
        for name, value in zip(
            INPUTS, map(node.get_input, range(node.get_input_size())), strict=False
        )
        if value.get_node().get_type_name() != "NullNode"
    }
    slots, constants, computed = {}, {}, {}
    for name, value in values.items():
        source = value.get_node()
        if name.startswith("past_") or name == "total_sequence_length":
            slots[name] = value.get_any_name()
        elif source.get_type_name() == "Constant":
            constants[name] = np.ascontiguousarray(source.data, np.float32)
        else:
            computed[name] = value
    attributes = tuple((name, kind(node.get_attribute(name))) for name, kind in ATTRIBUTES.items())
    layer = Layer(attributes, slots, tuple(computed), constants)
    runner.layers.append(layer)
    attention = Attention(list(computed.values()), len(runner.layers) - 1, runner)
    # Present keys and values are written where the past ones are: `graph` drops these outputs.
    presents = [constant(np.float32(0)).output(0) for _ in range(2 * layer.causal)]
    return [attention.output(0), *presents]
