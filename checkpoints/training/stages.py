"""Stages that are kept: a stage's weights go into the cache, and are taken from there next time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def start_afresh(module: PreTrainedModel) -> None:
    """Give a part new weights, which then depend on torch's seed and on nothing drawn before."""
    module.load_state_dict(type(module)(module.config).state_dict())


def kept(path: Path, modules: Mapping[str, nn.Module], train: Callable[[], float]) -> float:
    """Load `modules` from `path`, or train them and store them there.

    Args:
        path: the stage's file in the cache; delete it to train again.
        modules: what the stage trains, by the prefix their tensors get in the file.
        train: trains the modules in place and returns seconds.

    Returns:
        Seconds the training took, now or when the file was written.
    """
    if path.exists():
        with safe_open(path, framework="pt") as stored:
            for prefix, module in modules.items():
                names = [name for name in stored.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118
                state = {name[len(prefix) + 1 :]: stored.get_tensor(name) for name in names}
                module.load_state_dict(state)
            seconds = float(stored.metadata()["seconds"])
        log.info("%s is there, trained in %.0f s", path.name, seconds)
        return seconds
    seconds = train()
    tensors: dict[str, Tensor] = {
        f"{prefix}.{name}": tensor.contiguous().clone()
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_file(tensors, beside, metadata={"seconds": f"{seconds:.1f}"})
    beside.rename(path)
    return seconds
