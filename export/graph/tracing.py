"""Traces a component on fake tensors to an ONNX graph without weights."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers import PreTrainedModel

from iblip.export.artifact.contract import DTYPES as CONTRACT_DTYPES
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.components.autocast import autocast, is_matrix
from iblip.export.components.block_marks import (
    OUTPUT,
    STREAM_SCALE,
    mark_blocks,
    take_out_marks,
)
from iblip.export.components.component import Component
from iblip.export.components.without_memory import without_memory
from iblip.export.errors import ExportError
from iblip.export.graph.folding import fold_constants
from iblip.export.graph.stamping import UnlikeError, shorten, shorten_contract, stamp
from iblip.export.graph.value_names import name_values, note_scopes, settle_sizes
from iblip.export.precision import DTYPES, MATRICES, stays_in_float32

logger = logging.getLogger(__name__)

OPSET = 20
"""The newest opset that ONNX Runtime, TensorRT 10 and 11, and TensorRT-RTX all read."""

LIST_INPUTS = "key_values"
"""Inputs whose name contains this are passed to `forward` as one list."""


class Float32LayerNorm(torch.nn.LayerNorm):
    """A LayerNorm with parameters and computation in float32, and a result in `output_dtype`."""

    output_dtype: torch.dtype

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Any float dtype in, `output_dtype` out, the shape unchanged."""
        normed = torch.nn.functional.layer_norm(
            values.to(torch.float32), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.to(self.output_dtype)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A traced component.

    Attributes:
        component: what was traced.
        model: the graph, whose weights are initializers without values, named as in the checkpoint
            (only buffers that the modules compute from the config carry values).
        tied: for each weight that the config ties to another, that other's name, under which it is
            found if the checkpoint does not have it under its own.
        parameters: names of every weight of the modules, including those that the graph does not
            have because they do not affect its outputs.
    """

    component: Component
    model: ir.Model
    tied: Mapping[str, str]
    parameters: frozenset[str]

    @cached_property
    def weights(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every weight that the graph reads from the checkpoint, by name.

        Raises:
            ExportError: the trace has no shape or no dtype for a weight.
        """
        weights = {}
        for name, value in self.model.graph.initializers.items():
            if value.const_value is None:
                if value.shape is None or value.dtype is None:
                    message = f"{self.component.title}: the trace gave {name} no shape or no dtype"
                    raise ExportError(message)
                weights[name] = (tuple(value.shape.numpy()), _dtype(value.dtype.name.lower()))
        return weights


def _dtype(word: str) -> str:
    """Converts onnx-ir's name of a dtype (`float`, `float16`) to the contract's."""
    return "float32" if word == "float" else word


def trace(component: Component) -> Trace:
    """Traces `component` without weights in memory.

    Of a deep stack only some blocks are traced, if all are alike (`export.graph.stamping`).

    Raises:
        ExportError: torch could not trace it, or the graph does not have the contract's tensors.
    """
    try:
        return trace_blocks(component)
    except UnlikeError as error:
        logger.info("%s is traced whole: %s", component.title, error)
        return trace_blocks(component, whole=True)


def trace_blocks(component: Component, *, whole: bool = False) -> Trace:
    """Traces as `trace` does; with `whole`, every block of every stack.

    Raises:
        ExportError: as `trace` does.
        UnlikeError: the blocks of a stack are not alike, and `whole` is false.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with without_memory(lambda param: _fake(mode, param, param.dtype)):
        module = component.module().eval()
    _set_dtype(module, component.precision, mode)
    tied = tied_weights(module)
    parameters = frozenset(name for name, _ in module.named_parameters())
    cuts = [] if whole else shorten(module)
    mark_blocks(module)
    contract = shorten_contract(component.contract) if cuts else component.contract
    try:
        model = _export(contract, module, mode)
    except Exception as error:
        message = f"{component.title} could not be traced by torch.onnx: {error}"
        raise ExportError(message) from error
    _tidy(model, contract)
    stamp(model, cuts, component.contract)
    take_out_marks(model)
    if (scale := getattr(module, "stream_scale", 1.0)) != 1.0:
        model.metadata_props[STREAM_SCALE] = str(scale)
    passes.RemoveUnusedOpsetsPass()(model)
    name_values(model, OUTPUT)
    for name in parameters & set(model.graph.initializers):
        model.graph.initializers[name].const_value = None
    _check(component, model)
    return Trace(component=component, model=model, tied=tied, parameters=parameters)


def _export(contract: Contract, module: torch.nn.Module, mode: FakeTensorMode) -> ir.Model:
    args, shapes = _example(contract, mode)
    with torch.no_grad(), _quiet(), _one_registry():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            dynamic_shapes=shapes,
            # Constant folding asks for values, and fake tensors have none.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    return model


def _fake(mode: FakeTensorMode, like: torch.Tensor, dtype: torch.dtype) -> torch.nn.Parameter:
    with mode:
        return torch.nn.Parameter(torch.empty(like.shape, dtype=dtype), requires_grad=False)


def _set_dtype(module: torch.nn.Module, precision: str, mode: FakeTensorMode) -> None:
    """Sets every parameter's dtype, with the float32 islands of `export.precision`."""
    dtype = getattr(torch, DTYPES[precision])
    narrow = getattr(torch, MATRICES.get(precision, DTYPES[precision]))
    if narrow != dtype:
        autocast(module)
    for path, child in module.named_modules():
        if isinstance(child, torch.nn.LayerNorm):
            child.__class__ = Float32LayerNorm
            cast(Float32LayerNorm, child).output_dtype = dtype
        for name, param in list(child.named_parameters(recurse=False)):
            kind = getattr(torch, weight_dtype(path, child, precision))
            child.register_parameter(name, _fake(mode, param, kind))


def weight_dtype(path: str, module: torch.nn.Module, precision: str) -> str:
    """Returns the dtype of a module's own weights; `export.precision` lists the float32 islands."""
    if isinstance(module, torch.nn.LayerNorm) or stays_in_float32(path):
        return "float32"
    dtype = DTYPES[precision]
    return MATRICES.get(precision, dtype) if is_matrix(module) else dtype


def tied_weights(module: torch.nn.Module) -> dict[str, str]:
    """Returns the name of the other weight for each one that the config ties to another."""
    return {
        f"{path}.{target}": f"{path}.{source}"
        for path, child in module.named_modules()
        if isinstance(child, PreTrainedModel)
        for target, source in child.get_expanded_tied_weights_keys(all_submodels=True).items()
    }


def _example(contract: Contract, mode: FakeTensorMode) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Returns fake inputs, in which every dynamic axis has another size, and torch's axis names."""
    plain = [spec for spec in contract.inputs if LIST_INPUTS not in spec.name]
    listed = [spec for spec in contract.inputs if LIST_INPUTS in spec.name]
    sizes = {"batch": 2, "sequence": 3, "past": 5, "total": 8, "instruction": 7, "source": 11}
    sizes |= {"capacity": 13, "source_capacity": 17, "wanted": 4}

    def tensor(spec: TensorSpec) -> torch.Tensor:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        with mode:
            return torch.zeros(shape, dtype=getattr(torch, spec.dtype))

    def shape(spec: TensorSpec) -> dict[int, str]:
        return {i: axis for i, axis in enumerate(spec.axes) if isinstance(axis, str)}

    args: list[Any] = [tensor(spec) for spec in plain]
    shapes: list[Any] = [shape(spec) for spec in plain]
    if listed:
        args.append([tensor(spec) for spec in listed])
        shapes.append([shape(spec) for spec in listed])
    return tuple(args), tuple(shapes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides torch.onnx's warnings about itself (deprecations, absent torchvision)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_registry = functools.cache(ONNXRegistry.from_torchlib)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Has torch.onnx read its operators once a process: it does so in every export, for a second.

    Nothing is added to what is kept, as long as no export has a translation table of its own.
    """
    own = vars(ONNXRegistry)["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(_registry)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


def _tidy(model: ir.Model, contract: Contract) -> None:
    """Removes what the exporter leaves behind: identities, unused nodes, local source paths."""
    note_scopes(model)
    settle_sizes(model, contract)
    fold_constants(model)
    ir.passes.Sequential(
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    )(model)


def _check(component: Component, model: ir.Model) -> None:
    for kind, specs, values in (
        ("input", component.contract.inputs, model.graph.inputs),
        ("output", component.contract.outputs, model.graph.outputs),
    ):
        by_name = {value.name: value for value in values}
        for spec in specs:
            value = by_name.get(spec.name)
            dtype = None if value is None or value.dtype is None else value.dtype.numpy()
            if value is None or dtype != CONTRACT_DTYPES[spec.dtype]:
                state = "missing" if value is None else f"{value.dtype}"
                message = f"{component.title}: {kind} {spec} is {state} in the traced graph"
                raise ExportError(message)
            _set_shape(value, spec)


def _set_shape(value: ir.Value, spec: TensorSpec) -> None:
    """Names the axes as in the contract; torch writes a sum of two axes as an expression."""
    value.shape = ir.Shape(list(spec.axes))
