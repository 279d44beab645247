"""What dtype every layer of a parsed network computes in, held against the precision asked for.

A network is strongly typed: its layers compute in the dtypes of their inputs, and no flag changes
that. So a graph that was exported in another precision than its name says builds without a word,
and runs slowly; here its layers are named instead.

What is allowed follows from the precision's own rules (`export.precision`), not from a count:

- matrix layers compute in the precision's dtype, those of `stays_in_float32` in float32;
- of a quantised graph, products with weights are fed by `DequantizeLinear` of the quantised dtype
  on both sides, but for those that calibration left more precise (`more_precise` in the manifest);
- softmax and normalisation stay in float32;
- everything else computes in one of these dtypes: islands are joined to the rest by single layers.
  Where nothing at all computes in the precision's dtype, nothing of this holds.
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
"""Layers that an error names; it counts the others."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the layers of a graph of one precision compute in, in TensorRT's words.

    Attributes:
        matrices: the dtype of matrix layers, and of what stands between them.
        quantised: the dtype that products with weights are dequantised from; `None` where they are
            not quantised.
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
    # Its products are ONNX Runtime's own operators; of the rest some graphs can be read.
    "int4": Rule(matrices="FLOAT"),
}
"""A key of `export.precision.DTYPES` to its rule."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that computes with real numbers.

    Attributes:
        name: the ONNX node's, `<module path>/<operator>`.
        kind: TensorRT's word for its type.
        dtype: that it computes in, TensorRT's word; of a product of two dequantised factors, the
            quantised one.
        weighted: whether one of its factors is a constant.
    """

    name: str
    kind: str
    dtype: str
    weighted: bool = False

    @property
    def path(self) -> str:
        """The path of the module that it is of."""
        return self.name.rpartition("/")[0]


def layers_of_network(network: Any) -> list[Layer]:
    """Every layer of a parsed network that computes with real numbers, in the network's order.

    Args:
        network: TensorRT's `INetworkDefinition`.
    """
    found = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {
        layer.get_output(index).name: layer for layer in found for index in range(layer.num_outputs)
    }
    return [
        _layer(layer, makers)
        for layer in found
        if layer.type.name not in PASSING and layer.get_output(0).dtype.name in FLOATS
    ]


def _layer(layer: Any, makers: Mapping[str, Any]) -> Layer:
    kind, dtype = layer.type.name, layer.get_output(0).dtype.name
    if kind not in MATRIX:
        return Layer(name=layer.name, kind=kind, dtype=dtype)
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    origins = [list(_origins(tensor, makers)) for tensor in inputs if tensor is not None]
    quantised = {_dequantised(origin) for origin in origins}
    (narrow,) = quantised if len(quantised) == 1 else (None,)
    # A convolution's kernel is its own, unless it is quantised.
    constant = any(origin and origin[-1].type.name == "CONSTANT" for origin in origins)
    return Layer(
        name=layer.name,
        kind=kind,
        dtype=narrow if narrow and len(origins) > 1 else dtype,
        weighted=kind == "MATRIX_MULTIPLY" and constant,
    )


def _origins(tensor: Any, makers: Mapping[str, Any]) -> Iterator[Any]:
    """The layers behind a tensor that compute nothing, and the first that does not."""
    while tensor is not None and tensor.name in makers:
        maker = makers[tensor.name]
        yield maker
        if maker.type.name not in PASSING or not maker.num_inputs:
            return
        tensor = maker.get_input(0)


def _dequantised(origin: Sequence[Any]) -> str | None:
    """The dtype that a factor is dequantised from."""
    for layer in origin:
        if layer.type.name == "DEQUANTIZE":
            return str(layer.get_input(0).dtype.name)
    return None


def matrix_layers(layers: Sequence[Layer]) -> dict[str, int]:
    """How many matrix layers compute in which dtype."""
    return dict(Counter(layer.dtype for layer in layers if layer.kind in MATRIX))


def precision_fault(layers: Sequence[Layer], graph: OnnxGraph) -> str | None:
    """What is wrong with the dtypes of a network that was parsed from this graph: its layers.

    Args:
        layers: of the network.
        graph: what it was parsed from; its precision and quantisation say what is wanted.
    """
    wrong = [(layer, other) for layer in layers if (other := _other(layer, graph))]
    rule = PRECISIONS[graph.precision]
    if not wrong and all(layer.dtype not in (rule.matrices, rule.quantised) for layer in layers):
        wrong = [(layer, rule.matrices) for layer in layers]
    if not wrong:
        return None
    named = [f"{layer.name} ({layer.dtype}, wanted {other})" for layer, other in wrong[:SHOWN]]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return (
        f"{graph.path} was asked for in {graph.precision}, but {len(wrong)} of its {len(layers)} "
        f"layers compute in another dtype: {', '.join(named)}{more}. A plan keeps the graph's "
        "dtypes: export it in that precision."
    )


def _other(layer: Layer, graph: OnnxGraph) -> str | None:
    """The dtype that a layer would have to compute in; `None` where it does."""
    rule = PRECISIONS[graph.precision]
    wanted: tuple[str, ...] = (rule.matrices, "FLOAT")
    if layer.kind in ISLANDS or (layer.kind in MATRIX and stays_in_float32(layer.path)):
        wanted = ("FLOAT",)
    elif rule.quantised and layer.weighted and layer.path not in _more_precise(graph):
        wanted = (rule.quantised,)
    elif layer.kind in MATRIX:
        wanted = (rule.matrices,)
    return None if layer.dtype in wanted else " or ".join(dict.fromkeys(wanted))


def _more_precise(graph: OnnxGraph) -> frozenset[str]:
    """Paths of the modules whose weights calibration left as they were."""
    kept = graph.quantisation.get("more_precise", {})
    return frozenset(name.removesuffix(".weight") for name in kept)
