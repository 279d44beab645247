"""Stages 4 to 7: the Q-Former between picture and language, then everything together.

As BLIP-2 trains its Q-Former without a language model first, stage 4 does: on frozen image
features, with heads that are thrown away in the end. Left to the language model's loss alone, the
Q-Former ignores the picture for a long time, because the wording already tells the form of the
answer. One head must name the short answer from the mean of the queries, one must recite the scene
when a description is asked for; both need the instruction. Both demo models start from this
Q-Former.

Stage 5 joins it to a language model, image features still frozen. Stage 6 trains everything, the
vision encoder only towards the end, when the rest can tell it something. Stage 7 does so again from
a lower rate: what the vision encoder learnt late in stage 6, the rest had no time to use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import InstructBlipForConditionalGeneration

from .architecture import QFORMER_WIDTH, QUERIES
from .batches import Encoder, draw_questions
from .language import answer_logits, exact_matches
from .loop import Schedule, fit, pixel_values
from .pools import NOTHING, Pool
from .questions import NUMBERS, Question
from .scenes import COLOURS, PLACES, SIZES, TONES
from .stages import start_afresh
from .vision import CLASSES

Features = np.ndarray[tuple[int, int, int], np.dtype[np.float16]]

SHORT_ANSWERS = (
    *(str(digit) for digit in range(10)),
    *COLOURS, *PLACES, *SIZES, *TONES, *NUMBERS[1:], "yes", "no",
)  # fmt: skip

QFORMER = Schedule(steps=1000, batch=128, peak=1e-3, weight_decay=0.02)
BRIDGE = Schedule(steps=800, batch=128, peak=1e-3, weight_decay=0.02)
JOINT = Schedule(steps=1000, batch=96, peak=8e-4, warmup=50, weight_decay=0.02)
VISION_JOINS = 0.6  # share of the joint stage after which the vision encoder is trained too
POLISH = Schedule(steps=800, batch=96, peak=5e-4, warmup=50, weight_decay=0.02)


@dataclass(frozen=True)
class Shown:
    """A batch: pool rows, their questions and, for the heads, what the pictures show."""

    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    questions: list[Question]
    labels: Tensor  # int64 [batch, 9, 3], as in Pool.labels


def shown(pool: Pool, batch: int, rng: np.random.Generator) -> Shown:
    """Draw a batch of questions about a pool."""
    rows, questions = draw_questions(pool, batch, rng)
    return Shown(rows, questions, torch.from_numpy(pool.labels[rows].astype(np.int64)))


class BridgeHeads(nn.Module):
    """Auxiliary readings of the queries, float32 `[batch, queries, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(QFORMER_WIDTH, len(SHORT_ANSWERS))
        self.scene = nn.Linear(QUERIES * QFORMER_WIDTH, len(PLACES) * (sum(CLASSES) + len(CLASSES)))

    def loss(self, queries: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of both heads."""
        short, wanted = _short(batch)
        loss = functional.cross_entropy(self.answer(queries[short].mean(1)), wanted)
        for logits, truth in self._recital(queries[~short], batch.labels[~short]):
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), truth.flatten())
        return loss

    def matches(self, queries: Tensor, batch: Shown) -> Tensor:
        """Which questions the heads answer wholly right: bool `[batch]`."""
        short, wanted = _short(batch)
        right = torch.ones(len(short), dtype=torch.bool)
        right[short] = self.answer(queries[short].mean(1)).argmax(-1) == wanted
        for logits, truth in self._recital(queries[~short], batch.labels[~short]):
            right[~short] &= (logits.argmax(-1) == truth).all(1)
        return right

    def _recital(self, queries: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per fact: logits `[batch, 9, classes + 1]` and truth int64 `[batch, 9]`."""
        places = self.scene(queries.flatten(1)).unflatten(1, (len(PLACES), -1))
        parts = places.split([classes + 1 for classes in CLASSES], dim=-1)
        truths = [
            torch.where(labels[..., column] == NOTHING, classes, labels[..., column])
            for column, classes in enumerate(CLASSES)
        ]
        return list(zip(parts, truths, strict=True))


def _short(batch: Shown) -> tuple[Tensor, Tensor]:
    """Which questions have a short answer, bool `[batch]`, and those answers' classes."""
    short = torch.tensor([bool(question.short) for question in batch.questions])
    wanted = [SHORT_ANSWERS.index(q.short) for q in batch.questions if q.short]
    return short, torch.tensor(wanted)


class Queries(nn.Module):
    """Holds a model's query tokens, so that a stage can train and store them."""

    def __init__(self, tokens: nn.Parameter) -> None:
        super().__init__()
        self.tokens = tokens


class Bridge:
    """One model in training: runs batches through the parts that a stage trains.

    Args:
        model: the whole model, trained in place.
        encoder: its tokenizers.
        validation: what the log's figures come from.
        features: file for the image features that stages 4 to 6 share.
    """

    def __init__(
        self,
        model: InstructBlipForConditionalGeneration,
        encoder: Encoder,
        validation: Pool,
        features: Path,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.validation = validation
        self.features = features
        self.heads = BridgeHeads()
        self.query_tokens = Queries(model.query_tokens)

    def queries(self, image_embeds: Tensor, prompts: list[str]) -> Tensor:
        """Q-Former output, float32 `[batch, queries, width]`."""
        ids, mask = self.encoder.instruction(prompts)
        tokens = self.model.query_tokens.expand(len(prompts), -1, -1)
        mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        hidden: Tensor = self.model.qformer(
            input_ids=ids,
            attention_mask=mask,
            query_embeds=tokens,
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        return hidden[:, : tokens.shape[1]]

    def train_qformer(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Stage 4: Q-Former and queries with their heads, no language model; returns seconds."""
        torch.manual_seed(seed)
        start_afresh(self.model.qformer)
        nn.init.normal_(self.model.query_tokens)  # all alike if left at zero
        self.heads.load_state_dict(BridgeHeads().state_dict())
        features = frozen_features(self.model, pool, self.features)
        rng = np.random.default_rng([3, seed])

        def loss_of(step: int) -> Tensor:
            batch = shown(pool, schedule.batch, rng)
            queries = self._queries_of(features, batch)
            return self.heads.loss(queries, batch)

        modules = [self.model.qformer, self.query_tokens, self.heads]
        return fit("qformer", modules, loss_of, schedule, self._heads_accuracy, every=200)

    def train_bridge(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Stage 5: Q-Former, projection and language model on frozen features; returns seconds."""
        features = frozen_features(self.model, pool, self.features)
        rng = np.random.default_rng([4, seed])

        def loss_of(step: int) -> Tensor:
            batch = shown(pool, schedule.batch, rng)
            return self._loss(self._queries_of(features, batch), batch, auxiliary=0.2)

        modules = [self.model.qformer, self.query_tokens, self.heads]
        modules += [self.model.language_projection, self.model.language_model]
        return fit("bridge", modules, loss_of, schedule, self._accuracy, every=200)

    def train_jointly(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Stage 6: everything, the vision encoder joining late; returns seconds."""
        features = frozen_features(self.model, pool, self.features)
        rng = np.random.default_rng([5, seed])

        def loss_of(step: int) -> Tensor:
            batch = shown(pool, schedule.batch, rng)
            if step < VISION_JOINS * schedule.steps:
                return self._loss(self._queries_of(features, batch), batch, auxiliary=0.2)
            return self._loss_from_pixels(pool, batch)

        return fit("joint", [self.model, self.heads], loss_of, schedule, self._accuracy, every=200)

    def train_polish(self, pool: Pool, schedule: Schedule, seed: int) -> float:
        """Stage 7: everything, the vision encoder from the first step; returns seconds."""
        rng = np.random.default_rng([6, seed])

        def loss_of(step: int) -> Tensor:
            return self._loss_from_pixels(pool, shown(pool, schedule.batch, rng))

        return fit("polish", [self.model, self.heads], loss_of, schedule, self._accuracy, every=200)

    def _loss_from_pixels(self, pool: Pool, batch: Shown) -> Tensor:
        pixels = pixel_values(pool.pixels[batch.rows])
        embeds = self.model.vision_model(pixel_values=pixels).last_hidden_state
        queries = self.queries(embeds, [q.prompt for q in batch.questions])
        return self._loss(queries, batch, auxiliary=0.2)

    def _queries_of(self, features: Features, batch: Shown) -> Tensor:
        embeds = torch.from_numpy(features[batch.rows]).float()
        return self.queries(embeds, [q.prompt for q in batch.questions])

    def _loss(self, queries: Tensor, batch: Shown, auxiliary: float) -> Tensor:
        """The language model's loss, and `auxiliary` times the heads'."""
        logits, wanted, _ = self._answers(queries, batch)
        spoken = functional.cross_entropy(logits, wanted)
        return spoken + auxiliary * self.heads.loss(queries, batch)

    def _answers(self, queries: Tensor, batch: Shown) -> tuple[Tensor, Tensor, Tensor]:
        prompts = [question.prompt for question in batch.questions]
        text = self.encoder.text(prompts, [question.answer for question in batch.questions])
        visual_prompt = self.model.language_projection(queries)
        logits, wanted = answer_logits(self.model.language_model, text, visual_prompt)
        return logits, wanted, text.labels

    def _heads_accuracy(self) -> str:
        return self._report(self.heads.matches)

    def _accuracy(self) -> str:
        return self._report(lambda queries, batch: exact_matches(*self._answers(queries, batch)))

    @torch.no_grad()
    def _report(self, matches: Callable[[Tensor, Shown], Tensor], parts: int = 4) -> str:
        """Share of 800 validation questions answered right, and the worst kinds."""
        rng = np.random.default_rng(7)
        right: dict[str, list[bool]] = {}
        for batch in (shown(self.validation, 200, rng) for _ in range(parts)):
            embeds = image_features(self.model, self.validation, batch.rows)
            queries = self.queries(embeds, [q.prompt for q in batch.questions])
            for question, match in zip(
                batch.questions, matches(queries, batch).tolist(), strict=True
            ):
                right.setdefault(question.kind, []).append(match)
        every = [match for found in right.values() for match in found]
        kinds = sorted((float(np.mean(found)), kind) for kind, found in right.items())
        worst = " ".join(f"{kind} {share:.2f}" for share, kind in kinds[:6])
        return f"exact {np.mean(every):.4f} ({worst})"


@torch.no_grad()
def image_features(
    model: InstructBlipForConditionalGeneration,
    pool: Pool,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Tensor:
    """Vision features of some pictures: float32 `[rows, patches + 1, width]`."""
    pixels = pixel_values(pool.pixels[rows])
    features: Tensor = model.vision_model(pixel_values=pixels).last_hidden_state
    return features


def frozen_features(
    model: InstructBlipForConditionalGeneration, pool: Pool, path: Path
) -> Features:
    """Vision features of a whole pool, kept in `path`: float16 `[count, patches + 1, width]`.

    They hold as long as the vision encoder stays as it is; delete the file with the encoder's.
    """
    if not path.exists():
        model.vision_model.train(False)
        parts = np.array_split(np.arange(len(pool)), max(1, len(pool) // 500))
        features = [image_features(model, pool, rows).half().numpy() for rows in parts]
        beside = path.with_suffix(".partial.npy")
        np.save(beside, np.concatenate(features))
        beside.rename(path)
    stored: Features = np.load(path)
    return stored
