"""The blocks of a deep graph, copied from the trace of a shallow one.

A ViT of 39 equal blocks is traced with `UNITS`; the last of them is then copied for every block
that is missing, under its own weights and its own keys and values. That is done only where it
cannot be told from a whole trace: the modules of all blocks must be alike (class, settings,
shapes), and the last two traced ones must be the same nodes, but for the index in the names of what
they read. Where every second block is of another kind, as a Q-Former's are, two make one unit.
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
"""Units that are traced. The first may be of its own kind (T5's first block has the position bias),
and has what all share; the other two are compared."""

PERIODS = (1, 2)
"""Blocks that a unit may have."""

OWN = frozenset({"layer_idx", "training"})
"""Attributes of modules that say where they are, and not what they compute."""

_LAYER = re.compile(r"()\.(\d+)(\.(?:key|value))$")
_INDEX = re.compile(r"^(.*?)\.(\d+)(\.|$)")


class UnlikeError(Exception):
    """Two blocks are not the same nodes: the whole must be traced."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stack that is traced in part.

    Attributes:
        path: of its `ModuleList`.
        depth: blocks that it has.
        period: blocks of a unit.
    """

    path: str
    depth: int
    period: int


def period_of(stack: Sequence[torch.nn.Module]) -> int | None:
    """After how many blocks a stack repeats itself, but for the first such unit; or it does not."""
    signatures = [list(_signature(block)) for block in stack]
    for period in PERIODS:
        rest = signatures[period:]
        if not len(stack) % period and all(
            one == other for one, other in zip(rest, rest[period:], strict=False)
        ):
            return period
    return None


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


def shorten(module: torch.nn.Module) -> list[Cut]:
    """Cuts every stack of more than `UNITS` units; where one does not repeat itself, none."""
    cuts = {}
    for path, stack in stacks(module):
        period = period_of(list(stack))
        if period is None:
            return []
        if len(stack) > UNITS * period:
            cuts[path] = stack, Cut(path=path, depth=len(stack), period=period)
    for stack, cut in cuts.values():
        del stack[UNITS * cut.period :]
        _tell_depth(module.get_submodule(cut.path.rpartition(".")[0]), cut.depth, len(stack))
    return [cut for _, cut in cuts.values()]


def _tell_depth(parent: Any, was: int, depth: int) -> None:
    """To a module that runs as many blocks as its config says; others share the config."""
    if getattr(getattr(parent, "config", None), "num_hidden_layers", None) == was:
        parent.config = copy.copy(parent.config)
        parent.config.num_hidden_layers = depth


def shortened(contract: Contract) -> Contract:
    """`contract` without the keys and values of what `shorten` cuts away."""

    def kept(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in specs if (_layer(spec.name) or 0) < UNITS)

    return replace(contract, inputs=kept(contract.inputs), outputs=kept(contract.outputs))


def _layer(name: str | None) -> int | None:
    found = _LAYER.search(name or "")
    return int(found[2]) if found else None


def stamp(model: ir.Model, cuts: Sequence[Cut], contract: Contract) -> None:
    """Gives a graph of cut stacks, whose marks are still there, all its blocks.

    Args:
        model: changed in place.
        cuts: as from `shorten`. A stack that the graph does not run is passed over.
        contract: of the whole: the order of inputs and outputs.

    Raises:
        UnlikeError: the blocks differ. `model` is then not to be used.
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
        found = {value.name: value for value in values}
        if found.keys() != {spec.name for spec in specs}:
            raise UnlikeError("inputs or outputs are not those of the contract")
        values[:] = [found[spec.name] for spec in specs]


def _path_of(node: ir.Node) -> str | None:
    return node.attributes["path"].as_string() if node.domain == DOMAIN else None


def _stamp_stack(model: ir.Model, cut: Cut, marks: Sequence[ir.Node]) -> None:
    """`marks` are the last of every unit."""
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
        copies = [shift.copied(node) for node in last]
        model.graph.insert_after(end, copies)
        end = copies[-1]
    for node, i in rest:
        node.replace_input_with(i, end.outputs[0])


def _check_uses(block: Sequence[ir.Node], shift: Shift) -> None:
    """Refuses a unit of which others read more than its result."""
    inside = set(block)
    for node in block[:-1]:
        for value in node.outputs:
            if any(user not in inside for user in value.consumers()):
                raise UnlikeError(f"{value.name} is read outside of its block")
            if value.is_graph_output() and not shift.has(_layer(value.name)):
                raise UnlikeError(f"{value.name} is not an output of its own block")


@dataclass(kw_only=True)
class Shift:
    """What stands in one unit for each value that another reads.

    Attributes:
        model: the graph; gets the inputs, weights and outputs of copies.
        cut: the stack.
        unit, to: whose values are given, and whose are wanted.
        values: what is known already; values that units share stand for themselves.
    """

    model: ir.Model
    cut: Cut
    unit: int
    to: int
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def has(self, index: int | None) -> bool:
        """Whether the block of that index is in the unit whose values are given."""
        return index is not None and index // self.cut.period == self.unit

    def renamed(self, name: str) -> str:
        """Of something of the one unit: its name in the other."""
        return _INDEX.sub(self._moved, _LAYER.sub(self._moved, name, count=1), count=1)

    def _moved(self, found: re.Match[str]) -> str:
        before, index, after = found.groups()
        if not self.has(int(index)) or before not in ("", self.cut.path):
            return found[0]
        return f"{before}.{int(index) + (self.to - self.unit) * self.cut.period}{after}"

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
        raise UnlikeError(f"{shift.cut.path}: blocks of {len(block)} and {len(other)} nodes")
    for one, two in zip(block, other, strict=True):
        if _what(one) != _what(two) or not _same_attributes(one, two):
            raise UnlikeError(f"{shift.cut.path}: {one} is not {two}")
        if [None if v is None else shift.value(v) for v in one.inputs] != list(two.inputs):
            raise UnlikeError(f"{shift.cut.path}: {one} reads other values than {two}")
        for old, new in zip(one.outputs, two.outputs, strict=True):
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                raise UnlikeError(f"{shift.cut.path}: {old} is not {new}")
            shift.values[old] = new


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
