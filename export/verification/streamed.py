"""Runs transformers' model of a checkpoint that does not fit into memory, a layer at a time.

The modules are transformers' own. Their parameters are on torch's meta device, without memory; a
module's parameters are read from the checkpoint in float32 just before it runs, and released just
after. So memory is that of the largest module (a matrix, or an embedding) and of the activations,
and every pass reads the whole checkpoint: that takes most of the time, once for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.without_memory import without_memory
from iblip.export.errors import CheckpointError
from iblip.export.verification.loading import copy_config, tensor_from_weight, tied_names

CPU = torch.device("cpu")


def streamed_model(checkpoint: Checkpoint) -> Any:
    """Returns transformers' model of `checkpoint` in float32, which reads weights as it runs.

    Raises:
        CheckpointError: the checkpoint lacks a weight of the model.
    """
    import transformers

    kind = getattr(transformers, checkpoint.family.architecture)
    config = copy_config(checkpoint.config)
    return streamed_part(lambda: kind(config), checkpoint.tensors, "")


def streamed_part(make: Callable[[], Any], tensors: Mapping[str, Any], prefix: str) -> Any:
    """Returns a module in float32 that reads weights as it runs.

    Args:
        make: constructs the module.
        tensors: the checkpoint's.
        prefix: of the names of the module's weights there.

    Raises:
        CheckpointError: as `streamed_model`.
    """
    with without_memory():
        module = make().float().eval()
    stream(module, tensors, prefix)
    return module


def stream(module: Any, tensors: Mapping[str, Any], prefix: str = "") -> None:
    """Makes every module below `module` read its parameters when it runs.

    Args:
        module: of transformers, with its parameters on the meta device.
        tensors: the checkpoint's.
        prefix: of the names of the module's parameters there.

    Raises:
        CheckpointError: the checkpoint lacks a parameter.
    """
    tied = tied_names(module)
    for path, child in module.named_modules():
        names = {
            name: _source(f"{path}.{name}" if path else name, tensors, prefix, tied)
            for name in child._parameters
            if child._parameters[name] is not None
        }
        if not names:
            continue
        if next(child.children(), None) is None:
            _read_when_called(child, names)
        else:  # small, and read by parents: query tokens, class token, positions
            _fill(child, names)
    _on_cpu(module)


def _source(name: str, tensors: Mapping[str, Any], prefix: str, tied: Mapping[str, str]) -> Any:
    """Returns the checkpoint's tensor of that name, or of the one that the config ties it to."""
    for candidate in (name, tied.get(name, name)):
        if prefix + candidate in tensors:
            return tensors[prefix + candidate]
    raise CheckpointError(f"the checkpoint has no {prefix}{name}")


def _read_when_called(module: torch.nn.Module, sources: Mapping[str, Any]) -> None:
    empty = {name: module._parameters[name] for name in sources}

    def before(*_: Any) -> None:
        _fill(module, sources)

    def after(*_: Any) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


def _fill(module: torch.nn.Module, sources: Mapping[str, Any]) -> None:
    for name, source in sources.items():
        # Trainable, as transformers' are: torch multiplies by others in another order of sums.
        module._parameters[name] = torch.nn.Parameter(tensor_from_weight(source))


def _on_cpu(module: Any) -> None:
    """Sets the device of modules: transformers puts inputs where a model's first parameter is."""
    for child in module.modules():
        if isinstance(getattr(type(child), "device", None), property):
            kind = type(child)
            child.__class__ = type(kind.__name__, (kind,), {"device": CPU})
