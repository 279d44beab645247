"""The blocks of a deep graph, copied from the trace of a shallow one.

A ViT of 39 equal blocks is traced with `DEPTH`; the last of them is then copied for every block
that is missing, under its own weights and its own keys and values. That is done only where it
cannot be told from a whole trace: the modules of all blocks must be alike (class, settings,
shapes), and the last two traced ones must be the same nodes, but for the index in the names of what
they read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import onnx_ir as ir
import torch

from export.blocks import DOMAIN, stacks
from export.contract import Contract, TensorSpec
from export.names import SCOPE

DEPTH = 4
"""Blocks that are traced. The first may be of its own kind (T5's has the position bias), what
blocks share may be computed in the second, and the other two are compared."""

OWN = frozenset({"layer_idx", "training"})
"""Attributes of modules that say where they are, and not what they compute."""

_LAYER = re.compile(r"\.(\d+)\.(key|value)$")


class UnlikeError(Exception):
    """Two blocks are not the same nodes: the whole must be traced."""


def alike(stack: Sequence[torch.nn.Module]) -> bool:
    """Whether all blocks but the first, which may be of its own kind, compute the same."""
    signatures = [list(_signature(block)) for block in list(stack)[1:]]
    return all(one == other for one, other in pairwise(signatures))


def _signature(block: torch.nn.Module) -> Iterator[tuple[Any, ...]]:
    for path, module in block.named_modules():
        settings = {
            name: value
            for name, value in vars(module).items()
            if name not in OWN and isinstance(value, int | float | str | tuple | torch.dtype)
        }
        tensors = {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in module.named_parameters(recurse=False)
        }
        buffers = {name: buffer.tolist() for name, buffer in module.named_buffers(recurse=False)}
        yield path, type(module), settings, tensors, buffers


def shorten(module: torch.nn.Module) -> dict[str, int]:
    """Cuts every stack that is deeper than `DEPTH`, where the blocks of all of them are alike.

    Returns:
        By path, how many blocks the cut stacks had; nothing where none is cut.
    """
    deep = {path: stack for path, stack in stacks(module) if len(stack) > DEPTH}
    if not all(alike(list(stack)) for stack in deep.values()):
        return {}
    depths = {path: len(stack) for path, stack in deep.items()}
    for stack in deep.values():
        del stack[DEPTH:]
    return depths


def shortened(contract: Contract) -> Contract:
    """`contract` without the keys and values of what `shorten` cuts away."""

    def kept(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in specs if (_layer(spec.name) or 0) < DEPTH)

    return replace(contract, inputs=kept(contract.inputs), outputs=kept(contract.outputs))


def _layer(name: str | None) -> int | None:
    found = _LAYER.search(name or "")
    return int(found[1]) if found else None


def stamp(model: ir.Model, depths: Mapping[str, int], contract: Contract) -> None:
    """Gives a graph of cut stacks, whose marks are still there, all its blocks.

    Args:
        model: changed in place.
        depths: as from `shorten`. A stack that the graph does not run is passed over.
        contract: of the whole: the order of inputs and outputs.

    Raises:
        UnlikeError: the blocks differ. `model` is then not to be used.
    """
    for path, depth in depths.items():
        marks = [node for node in model.graph if _path_of(node) in _paths(path)]
        if marks:
            _stamp_stack(model, path, depth, marks)
    for values, specs in (
        (model.graph.inputs, contract.inputs),
        (model.graph.outputs, contract.outputs),
    ):
        found = {value.name: value for value in values}
        if found.keys() != {spec.name for spec in specs}:
            raise UnlikeError("inputs or outputs are not those of the contract")
        values[:] = [found[spec.name] for spec in specs]


def _path_of(node: ir.Node) -> str | None:
    return node.attributes["path"].as_string() if node.domain == DOMAIN else None


def _paths(path: str) -> list[str]:
    return [f"{path}.{index}" for index in range(DEPTH)]


def _stamp_stack(model: ir.Model, path: str, depth: int, marks: Sequence[ir.Node]) -> None:
    if [_path_of(node) for node in marks] != _paths(path):
        raise UnlikeError(f"{path}: its blocks are not run once each, in order")
    nodes = list(model.graph)
    ends = [nodes.index(mark) + 1 for mark in marks]
    before, last = nodes[ends[-3] : ends[-2]], nodes[ends[-2] : ends[-1]]
    _compare(Shift(model=model, path=path, index=DEPTH - 2, to=DEPTH - 1), before, last)
    _check_uses(model, before, DEPTH - 2)
    _check_uses(model, last, DEPTH - 1)
    (result,) = marks[-1].outputs
    rest = [(node, i) for node, i in result.uses() if node not in last]
    end = marks[-1]
    for index in range(DEPTH, depth):
        shift = Shift(model=model, path=path, index=DEPTH - 1, to=index)
        shift.values[marks[-2].outputs[0]] = end.outputs[0]
        copies = [shift.copied(node) for node in last]
        model.graph.insert_after(end, copies)
        end = copies[-1]
    for node, i in rest:
        node.replace_input_with(i, end.outputs[0])


def _check_uses(model: ir.Model, block: Sequence[ir.Node], index: int) -> None:
    """Refuses a block of which others read more than its result."""
    inside = set(block)
    for node in block[:-1]:
        for value in node.outputs:
            if any(user not in inside for user in value.consumers()):
                raise UnlikeError(f"{value.name} is read outside of its block")
            if value.is_graph_output() and _layer(value.name) != index:
                raise UnlikeError(f"{value.name} is not an output of its own block")


@dataclass(kw_only=True)
class Shift:
    """What stands in block `to` for each value that block `index` reads.

    Attributes:
        model: the graph; gets the inputs, weights and outputs of copies.
        path: of the stack.
        index, to: of the blocks.
        values: what is known already; values that blocks share stand for themselves.
    """

    model: ir.Model
    path: str
    index: int
    to: int
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        """Of something in block `index`: its name in the other."""
        if _layer(name) == self.index:
            return _LAYER.sub(rf".{self.to}.\2", name)
        own = f"{self.path}.{self.index}"
        if name == own or name.startswith(f"{own}."):
            return f"{self.path}.{self.to}{name[len(own) :]}"
        return name

    def value(self, value: ir.Value) -> ir.Value:
        """The other block's; an input or a weight that is not there yet is made."""
        if value not in self.values:
            self.values[value] = self._outer(value)
        return self.values[value]

    def _outer(self, value: ir.Value) -> ir.Value:
        graph, name = self.model.graph, self.renamed(value.name or "")
        if name == value.name or not (value.is_initializer() or value.is_graph_input()):
            return value
        if value.is_initializer():
            if name not in graph.initializers:
                graph.initializers[name] = _like(value, name)
                graph.initializers[name].const_value = value.const_value
            return graph.initializers[name]
        for found in graph.inputs:
            if found.name == name:
                return found
        graph.inputs.append(_like(value, name))
        return graph.inputs[-1]

    def copied(self, node: ir.Node) -> ir.Node:
        """The node as it is in the other block."""
        outputs = [_like(value, None) for value in node.outputs]
        attributes = list(node.attributes.values())
        if node.domain == DOMAIN:
            attributes = [ir.AttrString("path", self.renamed(_path_of(node) or ""))] + [
                attribute for attribute in attributes if attribute.name != "path"
            ]
        made = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.value(value) for value in node.inputs],
            attributes,
            outputs=outputs,
            version=node.version,
            metadata_props={SCOPE: self.renamed(node.metadata_props.get(SCOPE, ""))},
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            self.values[old] = new
            if old.is_graph_output():
                new.name = self.renamed(old.name or "")
                self.model.graph.outputs.append(new)
        return made


def _like(value: ir.Value, name: str | None) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _compare(shift: Shift, block: Sequence[ir.Node], other: Sequence[ir.Node]) -> None:
    """Raises UnlikeError unless `other` is what copying `block` would give."""
    if len(block) != len(other):
        raise UnlikeError(f"{shift.path}: blocks of {len(block)} and {len(other)} nodes")
    first = next((v for node in block for v in node.inputs if _is_result(v, shift, -1)), None)
    if first is not None:
        shift.values[first] = _result_of(shift)
    for one, two in zip(block, other, strict=True):
        if _what(one) != _what(two) or not _same_attributes(one, two):
            raise UnlikeError(f"{shift.path}: {one} is not {two}")
        if [None if v is None else shift.value(v) for v in one.inputs] != list(two.inputs):
            raise UnlikeError(f"{shift.path}: {one} reads other values than {two}")
        for old, new in zip(one.outputs, two.outputs, strict=True):
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                raise UnlikeError(f"{shift.path}: {old} is not {new}")
            shift.values[old] = new


def _is_result(value: ir.Value | None, shift: Shift, offset: int) -> bool:
    """Whether the value is the result of the block so far from `shift.index`."""
    node = None if value is None else value.producer()
    return node is not None and _path_of(node) == f"{shift.path}.{shift.index + offset}"


def _result_of(shift: Shift) -> ir.Value:
    wanted = f"{shift.path}.{shift.index}"
    return next(node for node in shift.model.graph if _path_of(node) == wanted).outputs[0]


def _what(node: ir.Node) -> tuple[Any, ...]:
    return node.domain, node.op_type, node.version, len(node.inputs), len(node.outputs)


def _same_attributes(one: ir.Node, other: ir.Node) -> bool:
    if one.attributes.keys() != other.attributes.keys():
        return False
    pairs = [(one.attributes[name], other.attributes[name]) for name in one.attributes]
    return all(_same(a, b) for a, b in pairs if not (one.domain == DOMAIN and a.name == "path"))


def _same(one: ir.Attr, other: ir.Attr) -> bool:
    if one.type != other.type or one.type == ir.AttributeType.GRAPH:
        return False
    if one.type == ir.AttributeType.TENSOR:
        a, b = one.as_tensor(), other.as_tensor()
        return (a.dtype, tuple(a.shape), a.tobytes()) == (b.dtype, tuple(b.shape), b.tobytes())
    return bool(one.value == other.value)
