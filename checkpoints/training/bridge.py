"""The stages between image and language, then those of everything together.

As BLIP-2 trains its Q-Former without a language model first, stage `qformer` does: on frozen image
features, with heads that are thrown away in the end. Models that share a Q-Former start from it.

Stage `bridge` joins it to a language model, image features still frozen. Stage `joint` trains
everything, the vision encoder only towards the end, when the rest can tell it something. Stage
`polish` does so again from a lower rate: what the vision encoder learnt late in `joint`, the rest
had no time to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import Diet, Encoder
from .features import Features, frozen_features, image_features
from .heads import Heads, Shown, shown
from .language import Answers, answers
from .loop import Schedule, fit, pixel_values
from .pools import Pool
from .projectors import Projector
from .stages import start_afresh

QFORMER = Schedule(steps=1000, batch=128, peak=1e-3, weight_decay=0.02)
BRIDGE = Schedule(steps=800, batch=128, peak=1e-3, weight_decay=0.02)
JOINT = Schedule(steps=1000, batch=96, peak=8e-4, warmup=50, weight_decay=0.02)
VISION_JOINS = 0.6  # share of the joint stage after which the vision encoder is trained too
POLISH = Schedule(steps=800, batch=96, peak=5e-4, warmup=50, weight_decay=0.02)
AUXILIARY = 0.2  # weight of the heads' loss beside the language model's
ASKED = 0.5  # weight of what it is asked about


class Bridge:
    """One model in training: runs batches through the parts that a stage trains.

    Args:
        model: the whole model, trained in place.
        projector: its way from image features to a visual prompt.
        heads: what reads that visual prompt besides the language model.
        encoder: its tokenizers.
        diet: what it is asked.
        validation: what the log's figures come from.
        features: file for the image features that the stages on a frozen encoder share.
    """

    def __init__(
        self,
        model: Any,
        projector: Projector,
        heads: Heads,
        encoder: Encoder,
        diet: Diet,
        validation: Pool,
        features: Path,
    ) -> None:
        self.model = model
        self.projector = projector
        self.heads = heads
        self.encoder = encoder
        self.diet = diet
        self.validation = validation
        self.features = features

    def train_qformer(self, pool: Pool, schedule: Schedule, seed: int, *, afresh: bool) -> float:
        """Q-Former and queries with their heads, no language model; returns seconds.

        Args:
            pool: images to train on.
            schedule: how long.
            seed: of new weights and of batches.
            afresh: whether Q-Former and queries get new weights first.
        """
        torch.manual_seed(seed)
        if afresh:
            start_afresh(self.model.qformer)
            nn.init.normal_(self.model.query_tokens)  # all alike if left at zero
        layers: list[Any] = list(self.heads.children())
        for layer in layers:
            layer.reset_parameters()
        features = frozen_features(self.model.vision_model, pool, self.features)
        rng = np.random.default_rng([3, seed])

        def loss_of(step: int) -> Tensor:
            batch = self._shown(pool, schedule.batch, rng)
            return self.heads.loss(self._readings(features, batch), batch)

        modules = [*self.projector.modules.values(), self.heads]
        return fit("qformer", modules, loss_of, schedule, self._heads_accuracy, every=200)

    def train_bridge(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Projector and language model on frozen features; returns seconds."""
        features = frozen_features(self.model.vision_model, pool, self.features)
        rng = np.random.default_rng([4, seed])

        def loss_of(step: int) -> Tensor:
            batch = self._shown(pool, schedule.batch, rng)
            return self._loss(self._readings(features, batch), batch)

        modules = [*self.projector.modules.values(), self.heads]
        modules += [self.model.language_projection, self.model.language_model]
        return fit("bridge", modules, loss_of, schedule, self._accuracy, every=200)

    def train_jointly(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Everything, the vision encoder joining late; returns seconds."""
        features = frozen_features(self.model.vision_model, pool, self.features)
        rng = np.random.default_rng([5, seed])

        def loss_of(step: int) -> Tensor:
            batch = self._shown(pool, schedule.batch, rng)
            if step < VISION_JOINS * schedule.steps:
                return self._loss(self._readings(features, batch), batch)
            return self._loss_from_pixels(pool, batch)

        return fit("joint", [self.model, self.heads], loss_of, schedule, self._accuracy, every=200)

    def train_polish(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Everything, the vision encoder from the first step; returns seconds."""
        rng = np.random.default_rng([6, seed])

        def loss_of(step: int) -> Tensor:
            batch = self._shown(pool, schedule.batch, rng)
            return self._loss_from_pixels(pool, batch)

        return fit("polish", [self.model, self.heads], loss_of, schedule, self._accuracy, every=200)

    def _shown(self, pool: Pool, batch: int, rng: np.random.Generator) -> Shown:
        return shown(pool, batch, rng, self.diet, self.encoder.form)

    def _loss_from_pixels(self, pool: Pool, batch: Shown) -> Tensor:
        pixels = pixel_values(pool.pixels[batch.rows])
        embeds = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self._loss(self._readings_of(embeds, batch), batch)

    def _readings(self, features: Features, batch: Shown) -> Tensor:
        return self._readings_of(torch.from_numpy(features[batch.rows]).float(), batch)

    def _readings_of(self, embeds: Tensor, batch: Shown) -> Tensor:
        return self.projector.readings(embeds, [q.prompt for q in batch.questions])

    def _loss(self, readings: Tensor, batch: Shown) -> Tensor:
        """The language model's loss, and its share of the heads'."""
        parts = list(self._answers(readings, batch))
        count = sum(len(said.targets) for said, _ in parts)
        loss = AUXILIARY * self.heads.loss(readings, batch)
        for said, part in parts:
            share = self.diet.weight(part.questions[0], len(said.targets) / count)
            loss = loss + share * functional.cross_entropy(said.logits, said.targets)
            loss = loss + ASKED * self.heads.asked_loss(said.first, part)
        return loss

    def _answers(self, readings: Tensor, batch: Shown) -> Iterator[tuple[Answers, Shown]]:
        """What the language model says, to the short and to the long questions apart.

        Descriptions are several times as long as the rest; apart, the rest need no padding.
        """
        visual_prompt = self.projector.visual_prompt(readings)
        for rows in batch.by_length():
            part = batch.part(rows)
            text = self.encoder.text(
                [q.prompt for q in part.questions], [q.answer for q in part.questions]
            )
            yield answers(self.model.language_model, text, visual_prompt[rows]), part

    def _matches(self, readings: Tensor, batch: Shown) -> Tensor:
        """Which questions are answered right in every token: bool `[batch]`."""
        right = torch.zeros(len(batch.questions), dtype=torch.bool)
        said = self._answers(readings, batch)
        for rows, (answer, _) in zip(batch.by_length(), said, strict=True):
            right[rows] = answer.matches()
        return right

    def _heads_accuracy(self) -> str:
        return self._report(self.heads.matches)

    def _accuracy(self) -> str:
        return self._report(self._matches)

    @torch.no_grad()
    def _report(self, matches: Callable[[Tensor, Shown], Tensor], parts: int = 4) -> str:
        """Share of 800 validation questions answered right, and the worst kinds."""
        rng = np.random.default_rng(7)
        right: dict[str, list[bool]] = {}
        for _ in range(parts):
            batch = self._shown(self.validation, 200, rng)
            embeds = image_features(self.model.vision_model, self.validation, batch.rows)
            found = matches(self._readings_of(embeds, batch), batch).tolist()
            for question, match in zip(batch.questions, found, strict=True):
                right.setdefault(question.kind, []).append(match)
        every = [match for found in right.values() for match in found]
        kinds = sorted((float(np.mean(found)), kind) for kind, found in right.items())
        worst = " ".join(f"{kind} {share:.2f}" for share, kind in kinds[:6])
        return f"exact {np.mean(every):.4f} ({worst})"
