"""The training loop that every stage shares, and the pixels' way into a model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .scenes import Pixels

log = logging.getLogger(__name__)

# CLIP's channel statistics, as in the originals' preprocessor_config.json.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Schedule:
    """One stage's optimisation: AdamW, linear warm-up, cosine down to nothing.

    Attributes:
        steps: optimiser steps.
        batch: examples a step.
        peak: highest learning rate.
        warmup: steps until the peak.
        weight_decay: on matrices; vectors (norms, biases) decay not.
        clip: largest gradient norm.
    """

    steps: int
    batch: int
    peak: float
    warmup: int = 150
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.peak <= 0:
            raise ValueError(f"steps, batch and peak must be positive: {self}")

    def rate(self, step: int) -> float:
        """Learning rate at `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def pixel_values(pixels: Pixels) -> Tensor:
    """Rescale and normalise: uint8 `[n, height, width, 3]` → float32 `[n, 3, height, width]`."""
    scaled = torch.from_numpy(pixels).float() / 255.0
    return ((scaled - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def fit(
    name: str,
    modules: Sequence[nn.Module],
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    report: Callable[[], str],
    every: int = 250,
) -> float:
    """Run one stage.

    Args:
        name: what the log calls it.
        modules: whose parameters are trained, where they require a gradient.
        loss_of: draws a batch for a step and returns its loss.
        schedule: steps and rates.
        report: a line of figures on validation data, logged now and then.
        every: steps between such lines.

    Returns:
        Seconds taken.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.peak, betas=(0.9, 0.98), fused=True)
    started, mean = time.monotonic(), 0.0
    for module in modules:
        module.train()
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            spent = time.monotonic() - started
            log.info(
                "%s %d/%d %.0f s loss %.4f %s",
                name,
                step + 1,
                schedule.steps,
                spent,
                mean,
                report(),
            )
    for module in modules:
        module.eval()
    return time.monotonic() - started
