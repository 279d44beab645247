"""Stages 1 and 2: the vision encoder, trained with auxiliary heads that are thrown away afterwards.

Every patch token must say which digit stands in its place of the three-by-three grid, in which
colour and how large. That dense signal is what a vision encoder needs to leave chance level
quickly; crowded pictures give up to nine digits for the price of one.

That alone lets a patch forget where it is: from such features a Q-Former answers what, but not
where. So in stage 2 every patch token must also name its own position.

Both demo models share this encoder, as the original InstructBLIP models share EVA's ViT-g.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.instructblip.modeling_instructblip import InstructBlipVisionModel

from .architecture import GRID
from .loop import Schedule, fit, pixel_values
from .pools import CROWDED, NOTHING, TRAINING, VALIDATION, Pool, PoolSpec, pool_from_spec
from .scenes import COLOURS, SIZES, TONES
from .stages import start_afresh

log = logging.getLogger(__name__)

CLASSES = (10, len(COLOURS), len(SIZES))  # per place; one more class means "nothing here"
WEIGHTS = (1.0, 0.5, 0.3)
SCHEDULE = Schedule(steps=1500, batch=128, peak=1.2e-3, weight_decay=0.05)
PLACING = Schedule(steps=300, batch=128, peak=4e-4, warmup=40, weight_decay=0.05)


@dataclass(frozen=True)
class VisionOptions:
    """How long and on what the vision encoder is trained."""

    schedule: Schedule = SCHEDULE
    placing: Schedule = PLACING
    crowded: PoolSpec = CROWDED
    sparse: PoolSpec = TRAINING
    validation: PoolSpec = VALIDATION
    seed: int = 1


class VisionHeads(nn.Module):
    """Linear readings of the patch tokens (digit, colour, size) and of the class token (tone)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(CLASSES) + len(CLASSES))
        self.tone = nn.Linear(width, len(TONES))
        self.position = nn.Linear(width, GRID * GRID)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read `tokens` float32 `[batch, 1 + patches, width]`.

        Returns:
            Logits a patch `[batch, 9, patches a place, classes]`, their mean over each place
            `[batch, 9, classes]`, and tone logits `[batch, 2]`.
        """
        patches = self.patch(tokens[:, 1:])
        side = GRID // 3
        places = patches.unflatten(1, (3, side, 3, side)).permute(0, 1, 3, 2, 4, 5)
        places = places.flatten(3, 4).flatten(1, 2)  # [batch, 9, patches a place, classes]
        return places, places.mean(2), self.tone(tokens[:, 0])


def vision_loss(heads: VisionHeads, tokens: Tensor, labels: Tensor, tones: Tensor) -> Tensor:
    """Cross entropy over all heads; `labels` int64 `[batch, 9, 3]`, `tones` int64 `[batch]`."""
    patches, places, tone = heads(tokens)
    loss = 0.1 * functional.cross_entropy(tone, tones)
    start = 0
    for column, (classes, weight) in enumerate(zip(CLASSES, WEIGHTS, strict=True)):
        stop = start + classes + 1
        wanted = torch.where(labels[..., column] == NOTHING, classes, labels[..., column])
        every = wanted.unsqueeze(2).expand(patches.shape[:3]).flatten()
        by_place = functional.cross_entropy(
            places[..., start:stop].flatten(0, 1), wanted.flatten(), label_smoothing=0.02
        )
        by_patch = functional.cross_entropy(patches[..., start:stop].flatten(0, 2), every)
        loss = loss + weight * (by_place + 0.5 * by_patch)
        start = stop
    return loss


@torch.no_grad()
def vision_accuracy(model: InstructBlipVisionModel, heads: VisionHeads, pool: Pool) -> str:
    """Share of filled places read rightly, as a line: digit, colour, size; then every place."""
    model.train(False)
    guesses = []
    for rows in np.array_split(np.arange(len(pool)), max(1, len(pool) // 500)):
        tokens = model(pixel_values=pixel_values(pool.pixels[rows])).last_hidden_state
        guesses.append(heads(tokens)[1])
    model.train()
    places = torch.cat(guesses)
    labels = torch.from_numpy(pool.labels.astype(np.int64))
    filled = labels[..., 0] != NOTHING
    parts, start = [], 0
    for column, classes in enumerate(CLASSES):
        best = places[..., start : start + classes + 1].argmax(-1)
        right = best == torch.where(filled, labels[..., column], classes)
        parts.append(f"{right[filled].float().mean().item():.4f}")
        parts.append(f"(empty {right[~filled].float().mean().item():.4f})")
        start += classes + 1
    return " ".join(parts)


def position_loss(heads: VisionHeads, tokens: Tensor) -> Tensor:
    """Cross entropy of each patch token's own position, row by row."""
    logits = heads.position(tokens[:, 1:])
    wanted = torch.arange(GRID * GRID).expand(logits.shape[:2])
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def train_vision(model: InstructBlipVisionModel, options: VisionOptions, cache: Path) -> float:
    """Stage 1: train the vision encoder, drawing pools into `cache`; returns seconds."""
    torch.manual_seed(options.seed)
    start_afresh(model)
    return _fit(model, "vision", options, options.schedule, cache, placing=False)


def train_placing(model: InstructBlipVisionModel, options: VisionOptions, cache: Path) -> float:
    """Stage 2: train it on, each patch naming its position too; returns seconds."""
    torch.manual_seed(options.seed)
    return _fit(model, "placing", options, options.placing, cache, placing=True)


def _fit(
    model: InstructBlipVisionModel,
    name: str,
    options: VisionOptions,
    schedule: Schedule,
    cache: Path,
    *,
    placing: bool,
) -> float:
    heads = VisionHeads(model.config.hidden_size)
    pools = [pool_from_spec(spec, cache) for spec in (options.crowded, options.sparse)]
    validation = pool_from_spec(options.validation, cache)
    rng = np.random.default_rng(options.seed)

    def loss_of(step: int) -> Tensor:
        # Ordinary pictures join in towards the end, which then fits their use.
        late = placing or step > 0.7 * schedule.steps
        pool = pools[int(late and rng.random() < 0.25)]
        rows = rng.integers(len(pool), size=schedule.batch)
        labels = torch.from_numpy(pool.labels[rows].astype(np.int64))
        tones = torch.from_numpy(pool.tones[rows].astype(np.int64))
        tokens = model(pixel_values=pixel_values(pool.pixels[rows])).last_hidden_state
        loss = vision_loss(heads, tokens, labels, tones)
        return loss + 0.5 * position_loss(heads, tokens) if placing else loss

    def report() -> str:
        return vision_accuracy(model, heads, validation)

    return fit(name, [model, heads], loss_of, schedule, report, every=100 if placing else 250)
