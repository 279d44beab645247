"""Loads a checkpoint's weights into transformers' modules, in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from iblip.export.adapters.adapted import Adapted
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.dequantisation.methods import methods_of
from iblip.export.errors import CheckpointError
from iblip.export.verification.adapting import with_adapters


def load_model(checkpoint: Checkpoint) -> Any:
    """Returns transformers' own model of `checkpoint`, in float32.

    transformers reads a checkpoint in its own form; other models, and those that another library
    has quantised, are filled from the tensors. peft adds adapters.
    """
    import transformers

    if isinstance(checkpoint, Adapted):
        return with_adapters(load_model(checkpoint.base), checkpoint)

    kind = getattr(transformers, checkpoint.family.architecture)
    if methods_of(checkpoint.tensors.values()):
        return fill(kind(copy_config(checkpoint.config)), checkpoint.tensors, "")
    config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
    if checkpoint.family.architecture not in config.get("architectures", ()):
        # Only a part of it lies there: an original's language model.
        return fill(kind(copy_config(checkpoint.config)), checkpoint.tensors, "")
    model: Any = kind.from_pretrained(
        checkpoint.directory, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def fill(module: Any, tensors: Mapping[str, Any], prefix: str) -> Any:
    """Fills `module`, as float32, with the tensors whose names begin with `prefix`; returns it.

    Tied weights stay tied if the checkpoint has only one of the two.

    Raises:
        CheckpointError: the checkpoint lacks a weight of the module.
    """
    state = {
        name.removeprefix(prefix): tensor_from_weight(tensor)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    module = module.float().eval()
    tied = tied_names(module)
    for target, source in tied.items():
        if {target, source} <= state.keys():
            parent, _, name = target.rpartition(".")
            setattr(module.get_submodule(parent), name, torch.nn.Parameter(state[target]))
    missing = set(module.load_state_dict(state, strict=False).missing_keys) - tied.keys()
    if missing:
        raise CheckpointError(f"the checkpoint has no {prefix}{min(missing)}")
    return module


def copy_config(config: Any) -> Any:
    """Returns a copy of `config` without the exporter's own attention, which tracing sets."""
    return type(config).from_dict(config.to_dict())


def tied_names(module: Any) -> dict[str, str]:
    """Returns the name of the other weight for each one that the config ties to another."""
    if not hasattr(module, "get_expanded_tied_weights_keys"):
        return {}
    tied: dict[str, str] = module.get_expanded_tied_weights_keys(all_submodels=True)
    return tied


def tensor_from_weight(tensor: Any) -> torch.Tensor:
    """Returns a tensor of a checkpoint in float32, in memory of its own."""
    values = np.asarray(tensor.read()).astype(np.float32)
    return torch.from_numpy(values).clone()
