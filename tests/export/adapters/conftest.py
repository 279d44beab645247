"""Adapters that peft's own code makes of the small random checkpoints, and saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.source import ModelSource, adapters_from_words
from iblip.export.opening import checkpoint_from_source
from iblip.export.progress import Silent
from iblip.export.verification.loading import load_model
from iblip.export.verification.references import AssembledReference


class Noted(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def opened(model: Path | str, *adapters: Path | str, progress: Silent | None = None) -> Checkpoint:
    """A checkpoint with adapters."""
    source = ModelSource(model=str(model), adapters=adapters_from_words(adapters))
    return checkpoint_from_source(source, progress or Silent())


def change(model: Any) -> Any:
    """Gives everything that would be trained other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            if "magnitude" in name:
                weight.mul_(1 + torch.rand_like(weight))
            elif "lora_" in name:
                weight.normal_(0, 0.3)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.fixture
def save_adapter(
    random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """`save_adapter("llama", target_modules=["q_proj"])`: the checkpoint, and a LoRA of it."""

    def save(kind: str, name: str = "adapter", /, **options: Any) -> tuple[Path, Path]:
        from peft import LoraConfig, get_peft_model

        base = random_checkpoint(kind)
        bare = opened(base)
        if kind == "minigpt4":
            model: Any = torch.nn.Module()
            for part, module in AssembledReference(bare).parts.items():
                model.add_module(part, module)
        else:
            model = load_model(bare)
        adapted = change(get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **options})))
        adapted.save_pretrained(tmp_path / name)
        return base, tmp_path / name

    return save
