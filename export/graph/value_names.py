"""Names a traced graph's values after the modules that compute them, not by torch's counters.

So a name says where a value comes from, and does not depend on how the model was traced.
"""

from __future__ import annotations

import ast
from collections import Counter
from itertools import takewhile

import onnx_ir as ir

from iblip.export.artifact.contract import Contract

SCOPE = "iblip.scope"
"""Key in a node's metadata for the path of its module."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def note_scopes(model: ir.Model) -> None:
    """Keeps each node's module path, and drops the rest of what torch's exporter notes."""
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['', '']"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        node.metadata_props.clear()
        node.metadata_props[SCOPE] = "" if scope == _NO_MODULE else scope
        for value in node.outputs:
            value.metadata_props.clear()
            _sort_axes(value)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _sort_axes(value: ir.Value) -> None:
    """Sorts the terms of a sum of axes: torch has `past + sequence` here, the reverse there."""
    if value.shape is not None and not value.shape.is_static():
        axes = [axis if isinstance(axis, int) else _sort_terms(axis.value) for axis in value.shape]
        value.shape = ir.Shape(axes)


def _sort_terms(axis: str | None) -> str | None:
    terms = [] if axis is None else axis.split(" + ")
    if not all(term.isidentifier() or term.isdigit() for term in terms):
        return axis
    return " + ".join(sorted(terms, key=lambda term: (term.isdigit(), term))) or None


def settle_sizes(model: ir.Model, contract: Contract) -> None:
    """Has each size read from the first input that has its axis, in the order of the inputs.

    torch's exporter chooses input and order by the names of its symbols, which change with the
    number of inputs.
    """
    sizes = list(takewhile(lambda node: node.op_type in ("Shape", "Squeeze"), model.graph))
    inputs = {value.name: value for value in model.graph.inputs}
    places = {
        axis: (spec.name, index)
        for spec in reversed(contract.inputs)
        for index, axis in reversed(list(enumerate(spec.axes)))
    }
    axes = {spec.name: spec.axes for spec in contract.inputs}
    order = list(places)
    keys: dict[ir.Node, tuple[int, bool]] = {}
    for node in sizes:
        (value,) = node.inputs
        assert value is not None
        if node.op_type == "Shape":
            axis = axes[value.name or ""][node.attributes["start"].as_int()]
            name, index = places[axis]
            node.replace_input_with(0, inputs[name])
            node.attributes["start"] = ir.AttrInt64("start", index)
            node.attributes["end"] = ir.AttrInt64("end", index + 1)
            keys[node] = order.index(axis), False
        else:
            producer = value.producer()
            assert producer is not None
            keys[node] = keys[producer][0], True
    rest = next((node for node in model.graph if node not in keys), None)
    if rest is not None:
        model.graph.remove(sizes)
        model.graph.insert_before(rest, sorted(sizes, key=keys.__getitem__))


def name_values(model: ir.Model, kept: str) -> None:
    """Names nodes and values `<module path>/<operator>`, with a number from the second on.

    Args:
        model: whose nodes have noted their scopes, which are removed.
        kept: suffix of the names that are not changed.
    """
    count: Counter[str] = Counter()
    for node in model.graph:
        name = f"{node.metadata_props.pop(SCOPE, '')}/{node.op_type}"
        count[name] += 1
        node.name = name if count[name] == 1 else f"{name}_{count[name]}"
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output() and not (value.name or "").endswith(kept):
                value.name = f"{node.name}:{index}" if index else node.name
    _sort_initializers(model)


def _sort_initializers(model: ir.Model) -> None:
    """Sorts initializers by the order in which nodes first read them."""
    read = [value.name for node in model.graph for value in node.inputs if value is not None]
    order = {name: position for position, name in reversed(list(enumerate(read)))}
    initializers = model.graph.initializers
    values = sorted(initializers.values(), key=lambda value: order.get(value.name, len(read)))
    initializers.clear()
    for value in values:
        initializers.add(value)
