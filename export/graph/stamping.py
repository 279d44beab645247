"""Completes the trace of a shallow stack to a deep one by copying its blocks.

A ViT of 39 equal blocks is traced with `UNITS` of them; the last one is then copied for every block
that is missing, with that block's own weights, keys and values. The result is that of a whole
trace, which is checked: the modules of all blocks must be alike (class, settings, shapes), and the
last two traced ones must have the same nodes, except for the index in the names of what they read.
If every second block is of another kind, as in a Q-Former, two blocks make one unit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.block_marks import DOMAIN, stacks
from iblip.export.graph.value_names import SCOPE

UNITS = 3
"""Units that are traced. The first may differ (T5's first block has the position bias) and
computes what all share; the other two are compared."""

PERIODS = (1, 2)
"""Numbers of blocks that a unit may have."""

OWN = frozenset({"layer_idx", "training"})
"""Attributes of modules that do not affect what they compute."""

_LAYER = re.compile(r"()\.(\d+)(\.(?:key|value))$")
_INDEX = re.compile(r"^(.*?)\.(\d+)(\.|$)")


class UnlikeError(Exception):
    """Two blocks do not have the same nodes: the whole stack must be traced."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stack of which a part is traced.

    Attributes:
        path: of its `ModuleList`.
        depth: number of its blocks.
        period: number of blocks in a unit.
    """

    path: str
    depth: int
    period: int


def period_of(stack: Sequence[torch.nn.Module]) -> int | None:
    """Returns after how many blocks a stack repeats itself, first unit aside; `None` if never."""
    signatures = [list(_module_signature(block)) for block in stack]
    for period in PERIODS:
        rest = signatures[period:]
        if not len(stack) % period and all(
            block == later for block, later in zip(rest, rest[period:], strict=False)
        ):
            return period
    return None


def _module_signature(block: torch.nn.Module) -> Iterator[tuple[Any, ...]]:
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


def shorten(module: torch.nn.Module) -> list[Cut]:
    """Cuts every stack of more than `UNITS` units; none, if any does not repeat itself."""
    cuts = {}
    for path, stack in stacks(module):
        period = period_of(list(stack))
        if period is None:
            return []
        if len(stack) > UNITS * period:
            cuts[path] = stack, Cut(path=path, depth=len(stack), period=period)
    for stack, cut in cuts.values():
        del stack[UNITS * cut.period :]
        _set_depth(module.get_submodule(cut.path.rpartition(".")[0]), cut.depth, len(stack))
    return [cut for _, cut in cuts.values()]


def _set_depth(parent: Any, old: int, depth: int) -> None:
    """Sets the depth in the config of a module that runs as many blocks as its config says.

    The config is copied, as other modules share it.
    """
    if getattr(getattr(parent, "config", None), "num_hidden_layers", None) == old:
        parent.config = copy.copy(parent.config)
        parent.config.num_hidden_layers = depth


def shorten_contract(contract: Contract) -> Contract:
    """Returns `contract` without the keys and values of the blocks that `shorten` removes."""

    def keep(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in specs if (_layer(spec.name) or 0) < UNITS)

    return replace(contract, inputs=keep(contract.inputs), outputs=keep(contract.outputs))


def _layer(name: str | None) -> int | None:
    match = _LAYER.search(name or "")
    return int(match[2]) if match else None


def stamp(model: ir.Model, cuts: Sequence[Cut], contract: Contract) -> None:
    """Adds the missing blocks to a graph of cut stacks, whose marks are still in it.

    Args:
        model: changed in place.
        cuts: as from `shorten`. A stack that the graph does not run is ignored.
        contract: of the whole graph, for the order of inputs and outputs.

    Raises:
        UnlikeError: the blocks differ. `model` must not be used then.
    """
    for cut in cuts:
        paths = [f"{cut.path}.{index}" for index in range(UNITS * cut.period)]
        marks = [node for node in model.graph if _path_of(node) in paths]
        if marks and [_path_of(node) for node in marks] != paths:
            raise UnlikeError(f"{cut.path}: its blocks are not run once each, in order")
        if marks:
            _stamp_stack(model, cut, marks[cut.period - 1 :: cut.period])
    for values, specs in (
        (model.graph.inputs, contract.inputs),
        (model.graph.outputs, contract.outputs),
    ):
        by_name = {value.name: value for value in values}
        if by_name.keys() != {spec.name for spec in specs}:
            raise UnlikeError("inputs or outputs are not those of the contract")
        values[:] = [by_name[spec.name] for spec in specs]


def _path_of(node: ir.Node) -> str | None:
    return node.attributes["path"].as_string() if node.domain == DOMAIN else None


def _stamp_stack(model: ir.Model, cut: Cut, marks: Sequence[ir.Node]) -> None:
    """Adds the missing units of one stack. `marks` are the last marks of the traced units."""
    nodes = list(model.graph)
    ends = [nodes.index(mark) + 1 for mark in marks]
    before, last = nodes[ends[-3] : ends[-2]], nodes[ends[-2] : ends[-1]]
    results = [mark.outputs[0] for mark in marks]
    shift = Shift(model=model, cut=cut, unit=UNITS - 2, to=UNITS - 1)
    shift.values[results[-3]] = results[-2]
    _compare(shift, before, last)
    for unit, block in ((UNITS - 2, before), (UNITS - 1, last)):
        _check_uses(block, Shift(model=model, cut=cut, unit=unit, to=unit))
    rest = [(node, i) for node, i in results[-1].uses() if node not in last]
    end = marks[-1]
    for unit in range(UNITS, cut.depth // cut.period):
        shift = Shift(model=model, cut=cut, unit=UNITS - 1, to=unit)
        shift.values[results[-2]] = end.outputs[0]
        copies = [shift.copy(node) for node in last]
        model.graph.insert_after(end, copies)
        end = copies[-1]
    for node, i in rest:
        node.replace_input_with(i, end.outputs[0])


def _check_uses(block: Sequence[ir.Node], shift: Shift) -> None:
    """Raises UnlikeError if anything but a unit's result is read outside of it."""
    inside = set(block)
    for node in block[:-1]:
        for value in node.outputs:
            if any(user not in inside for user in value.consumers()):
                raise UnlikeError(f"{value.name} is read outside of its block")
            if value.is_graph_output() and not shift.has(_layer(value.name)):
                raise UnlikeError(f"{value.name} is not an output of its own block")


@dataclass(kw_only=True)
class Shift:
    """Maps the values of one unit to those of another.

    Attributes:
        model: the graph; inputs, weights and outputs of copies are added to it.
        cut: the stack.
        unit, to: indices of the unit whose values are mapped, and of the other.
        values: the pairs that are known; a value that units share is mapped to itself.
    """

    model: ir.Model
    cut: Cut
    unit: int
    to: int
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def has(self, index: int | None) -> bool:
        """Whether the block of that index is in the unit whose values are mapped."""
        return index is not None and index // self.cut.period == self.unit

    def rename(self, name: str) -> str:
        """Returns the name in the other unit of something in this one."""
        return _INDEX.sub(self._move, _LAYER.sub(self._move, name, count=1), count=1)

    def _move(self, match: re.Match[str]) -> str:
        before, index, after = match.groups()
        if not self.has(int(index)) or before not in ("", self.cut.path):
            return match[0]
        return f"{before}.{int(index) + (self.to - self.unit) * self.cut.period}{after}"

    def value(self, value: ir.Value) -> ir.Value:
        """Returns the other unit's value; adds it to the graph if it is an input or a weight."""
        if value not in self.values:
            self.values[value] = self._outer(value)
        return self.values[value]

    def _outer(self, value: ir.Value) -> ir.Value:
        graph, name = self.model.graph, self.rename(value.name or "")
        if name == value.name or not (value.is_initializer() or value.is_graph_input()):
            return value
        if value.is_initializer():
            if name not in graph.initializers:
                graph.initializers[name] = _like(value, name)
                graph.initializers[name].const_value = value.const_value
            return graph.initializers[name]
        for other in graph.inputs:
            if other.name == name:
                return other
        graph.inputs.append(_like(value, name))
        return graph.inputs[-1]

    def copy(self, node: ir.Node) -> ir.Node:
        """Returns the node as it is in the other unit."""
        outputs = [_like(value, None) for value in node.outputs]
        attributes = list(node.attributes.values())
        if node.domain == DOMAIN:
            attributes = [ir.AttrString("path", self.rename(_path_of(node) or ""))] + [
                attribute for attribute in attributes if attribute.name != "path"
            ]
        other = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.value(value) for value in node.inputs],
            attributes,
            outputs=outputs,
            version=node.version,
            metadata_props={SCOPE: self.rename(node.metadata_props.get(SCOPE, ""))},
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            self.values[old] = new
            if old.is_graph_output():
                new.name = self.rename(old.name or "")
                self.model.graph.outputs.append(new)
        return other


def _like(value: ir.Value, name: str | None) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _compare(shift: Shift, block: Sequence[ir.Node], other: Sequence[ir.Node]) -> None:
    """Raises UnlikeError unless `other` is what copying `block` would give."""
    if len(block) != len(other):
        raise UnlikeError(f"{shift.cut.path}: blocks of {len(block)} and {len(other)} nodes")
    for first, second in zip(block, other, strict=True):
        if _node_signature(first) != _node_signature(second) or not _same_attributes(first, second):
            raise UnlikeError(f"{shift.cut.path}: {first} is not {second}")
        if [None if v is None else shift.value(v) for v in first.inputs] != list(second.inputs):
            raise UnlikeError(f"{shift.cut.path}: {first} reads other values than {second}")
        for old, new in zip(first.outputs, second.outputs, strict=True):
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                raise UnlikeError(f"{shift.cut.path}: {old} is not {new}")
            shift.values[old] = new


def _node_signature(node: ir.Node) -> tuple[Any, ...]:
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
