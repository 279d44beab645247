"""Runs adapters as peft does: transformers' model with LoRA beside its weights, not merged.

peft reads the adapter's own files, so that a wrong scale or place shows. Of several adapters it
merges all but the last, in order, as this project defines their order.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iblip.export.adapters.adapted import Adapted
from iblip.export.adapters.names import find_name, part_from_name, without_wrappers
from iblip.export.adapters.reading import Adapter
from iblip.export.checkpoint.directory import ADAPTER_CONFIG, object_from_json
from iblip.export.system.installing import check_peft

if TYPE_CHECKING:
    from iblip.export.weights.weight import Weight


def with_adapters(model: Any, checkpoint: Adapted) -> Any:
    """Returns `model` with the checkpoint's adapters; the last of them is not merged.

    Args:
        model: transformers' of the checkpoint without its adapters, or a module with its parts as
            children; it is changed.
        checkpoint: with the adapters.

    Raises:
        MissingPackageError: peft is not installed.
    """
    check_peft()
    rows = checkpoint.base.config.text_config.vocab_size
    if hasattr(model, "config"):
        model.config.image_token_index = checkpoint.config.image_token_index
    for adapter in checkpoint.adapters:
        if adapter is not checkpoint.adapters[0]:
            _untie(model)
            model = model.merge_and_unload()
        before, rows = rows, adapter.rows or rows
        if rows != before:
            model.language_model.resize_token_embeddings(rows, mean_resizing=False)
        model = _load(model, adapter)
    return model.base_model.model.eval()


def _untie(model: Any) -> None:
    """Gives tied weights memory of their own: peft would merge into all of them."""
    seen: set[int] = set()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) in seen:
                module._parameters[name] = torch.nn.Parameter(weight.detach().clone())
            seen.add(id(weight))


def _load(model: Any, adapter: Adapter) -> Any:
    """Returns peft's model around `model`."""
    from peft import PeftConfig, PeftModel

    modules = {name for name, _ in model.named_modules()}
    moved = {own: _moved(own, modules) for own in adapter.tensors}
    with tempfile.TemporaryDirectory() as scratch:
        directory = adapter.directory
        if any(own != new for own, new in moved.items()):
            directory = Path(scratch)
            _write_moved(adapter, moved, directory)
        config = PeftConfig.from_pretrained(str(directory))
        config.task_type = None  # which would choose a class with a head of its own
        return PeftModel.from_pretrained(model, directory, config=config)


def _moved(own: str, known: set[str]) -> str:
    """An adapter's name of a tensor, with its module's path in this version of transformers."""
    trained = part_from_name(own).module
    name = find_name(trained, known)
    behind = without_wrappers(own).rpartition(f"{trained}.")[2]
    return own if name is None else f"base_model.model.{name}.{behind}"


def _write_moved(adapter: Adapter, moved: Mapping[str, str], directory: Path) -> None:
    """Writes an adapter as this version of transformers would have had it.

    Its patterns are of other paths, so that its modules are listed with what they say.
    """
    from safetensors.torch import save_file

    from iblip.export.weights.casts import tensor_from_array

    def tensor(weight: Weight) -> torch.Tensor:
        return tensor_from_array(weight.read()).clone()

    tensors = {moved[own]: tensor(weight) for own, weight in adapter.tensors.items()}
    save_file(tensors, directory / "adapter_model.safetensors")
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for own, new in moved.items():
        trained, module = part_from_name(own), part_from_name(new).module
        if not trained.is_whole:
            ranks[module] = adapter.config.rank(trained.module)
            alphas[module] = adapter.config.alpha(trained.module)
    config = object_from_json(adapter.directory / ADAPTER_CONFIG) | {
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
