"""Checks the dtype that every layer of a parsed network computes in against the precision.

A network is strongly typed: its layers compute in the dtypes of their inputs, and no flag changes
that. So a graph that was exported in another precision than its name says would build without a
warning and run slowly; here its layers are reported instead.

What is allowed follows from the precision's own rules (`export.precision`), not from a count:

- matrix layers compute in the precision's dtype, those of `stays_in_float32` in float32;
- in a quantised graph, MatMuls with weights are fed by `DequantizeLinear` of the quantised dtype on
  both sides, except those that calibration left more precise (`more_precise` in the manifest);
- softmax and normalisation stay in float32;
- everything else computes in one of these dtypes: single layers join float32 islands to the rest.

If no layer at all computes in the precision's dtype, every layer is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.precision import stays_in_float32

MATRIX = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"})
"""Kinds of layer that a GPU's matrix units compute."""

ISLANDS = frozenset({"SOFTMAX", "RAGGED_SOFTMAX", "NORMALIZATION"})
"""Kinds of layer that stay in float32."""

PASSING = frozenset({"CONSTANT", "CAST", "SHUFFLE", "IDENTITY", "QUANTIZE", "DEQUANTIZE"})
"""Kinds of layer that compute nothing."""

FLOATS = frozenset({"FLOAT", "HALF", "BF16", "FP8", "INT8", "INT4", "FP4"})
"""TensorRT's dtypes that stand for real numbers; integers are shapes, ids and masks."""

SHOWN = 8
"""How many layers an error names; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the layers of a graph of one precision compute in, in TensorRT's words.

    Attributes:
        matrices: the dtype of matrix layers, and of the layers between them.
        quantised: the dtype that the factors of MatMuls with weights are dequantised from; `None`
            if they are not quantised.
    """

    matrices: str
    quantised: str | None = None


PRECISIONS: Mapping[str, Rule] = {
    "fp32": Rule(matrices="FLOAT"),
    "fp16": Rule(matrices="HALF"),
    "bf16": Rule(matrices="BF16"),
    "lavis": Rule(matrices="HALF"),
    "int8": Rule(matrices="FLOAT", quantised="INT8"),
    "int8-fp16": Rule(matrices="HALF", quantised="INT8"),
    "fp8": Rule(matrices="HALF", quantised="FP8"),
    # Their MatMuls are ONNX Runtime's own operators; only graphs without them can be parsed.
    "int4": Rule(matrices="FLOAT"),
    "int4-fp16": Rule(matrices="HALF"),
    "int4-bf16": Rule(matrices="BF16"),
    "int8-bf16": Rule(matrices="BF16"),
}
"""A key of `export.precision.DTYPES` to its rule."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that computes with real numbers.

    Attributes:
        name: the ONNX node's, `<module path>/<operator>`.
        kind: TensorRT's name of its type.
        dtype: TensorRT's name of the dtype that it computes in; the quantised dtype for a MatMul of
            two dequantised factors.
        weighted: whether it is a MatMul with a constant.
    """

    name: str
    kind: str
    dtype: str
    weighted: bool = False

    @property
    def path(self) -> str:
        """The path of the module that it belongs to."""
        return self.name.rpartition("/")[0]


def layers_of_network(network: Any) -> list[Layer]:
    """Every layer of a parsed network that computes with real numbers, in the network's order.

    Args:
        network: TensorRT's `INetworkDefinition`.
    """
    every = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {
        layer.get_output(index).name: layer for layer in every for index in range(layer.num_outputs)
    }
    return [
        _layer(layer, makers)
        for layer in every
        if layer.type.name not in PASSING and layer.get_output(0).dtype.name in FLOATS
    ]


def _layer(layer: Any, makers: Mapping[str, Any]) -> Layer:
    kind, dtype = layer.type.name, layer.get_output(0).dtype.name
    if kind not in MATRIX:
        return Layer(name=layer.name, kind=kind, dtype=dtype)
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    origins = [list(_trace_origins(tensor, makers)) for tensor in inputs if tensor is not None]
    quantised = {_find_quantised_dtype(origin) for origin in origins}
    (narrow,) = quantised if len(quantised) == 1 else (None,)
    # A convolution's kernel is its own, unless it is quantised.
    constant = any(_ends_in_a_matrix(origin) for origin in origins)
    return Layer(
        name=layer.name,
        kind=kind,
        dtype=narrow if narrow and len(origins) > 1 else dtype,
        weighted=kind == "MATRIX_MULTIPLY" and constant,
    )


def _trace_origins(tensor: Any, makers: Mapping[str, Any]) -> Iterator[Any]:
    """The layers before a tensor that compute nothing, back to the first that does."""
    while tensor is not None and tensor.name in makers:
        maker = makers[tensor.name]
        yield maker
        if maker.type.name not in PASSING or not maker.num_inputs:
            return
        tensor = maker.get_input(0)


def _ends_in_a_matrix(origin: Sequence[Any]) -> bool:
    """Whether it is a constant matrix. The ViT's patches are multiplied by a reordered kernel of a
    convolution, of four axes, which is not quantised."""
    if not origin or origin[-1].type.name != "CONSTANT":
        return False
    return len(tuple(origin[-1].get_output(0).shape)) <= 2


def _find_quantised_dtype(origin: Sequence[Any]) -> str | None:
    """The dtype that a factor is dequantised from; `None` if it is not."""
    for layer in origin:
        if layer.type.name == "DEQUANTIZE":
            return str(layer.get_input(0).dtype.name)
    return None


def matrix_layers(layers: Sequence[Layer]) -> dict[str, int]:
    """The number of matrix layers by the dtype that they compute in."""
    return dict(Counter(layer.dtype for layer in layers if layer.kind in MATRIX))


def precision_fault(layers: Sequence[Layer], graph: OnnxGraph) -> str | None:
    """Describes the layers of a parsed network that compute in a wrong dtype; `None` if none does.

    Args:
        layers: of the network.
        graph: the graph that it was parsed from, whose precision and quantisation are expected.
    """
    wrong = [(layer, other) for layer in layers if (other := _find_expected(layer, graph))]
    rule = PRECISIONS[graph.precision]
    if not wrong and all(layer.dtype not in (rule.matrices, rule.quantised) for layer in layers):
        wrong = [(layer, rule.matrices) for layer in layers]
    if not wrong:
        return None
    named = [f"{layer.name} ({layer.dtype}, expected {other})" for layer, other in wrong[:SHOWN]]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return (
        f"{graph.path} was asked for in {graph.precision}, but {len(wrong)} of its {len(layers)} "
        f"layers compute in another dtype: {', '.join(named)}{more}. A plan keeps the graph's "
        "dtypes: export it in that precision."
    )


def _find_expected(layer: Layer, graph: OnnxGraph) -> str | None:
    """The dtypes that a layer should compute in; `None` if it does."""
    rule = PRECISIONS[graph.precision]
    expected: tuple[str, ...] = (rule.matrices, "FLOAT")
    if layer.kind in ISLANDS or (layer.kind in MATRIX and stays_in_float32(layer.path)):
        expected = ("FLOAT",)
    elif rule.quantised and layer.weighted and layer.path not in _more_precise(graph):
        expected = (rule.quantised,)
    elif layer.kind in MATRIX:
        expected = (rule.matrices,)
    return None if layer.dtype in expected else " or ".join(dict.fromkeys(expected))


def _more_precise(graph: OnnxGraph) -> frozenset[str]:
    """Paths of the modules whose weights calibration left unquantised."""
    kept = graph.quantisation.get("more_precise", {})
    return frozenset(name.removesuffix(".weight") for name in kept)
