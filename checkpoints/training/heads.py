"""Auxiliary heads, thrown away in the end: what visual prompts and language models must know.

Left to the language model's loss alone, a Q-Former ignores the image for a long time, because the
wording already tells the form of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import LANGUAGE_WIDTH, QFORMER_WIDTH, QUERIES
from .batches import Diet, draw_questions
from .pools import NOTHING, Pool
from .prompts import Form
from .questions import NUMBERS, Question
from .scenes import COLOURS, PLACES, SIZES, TONES
from .vision import CLASSES

SHORT_ANSWERS = (
    *(str(digit) for digit in range(10)),
    *COLOURS, *PLACES, *SIZES, *TONES, *NUMBERS[1:], "yes", "no",
)  # fmt: skip
FACTS = sum(CLASSES) + len(CLASSES) + len(PLACES) + 1  # classes of a digit's facts, or of none
MOST = len(NUMBERS) - 1  # digits in an image that is asked about


@dataclass(frozen=True)
class Shown:
    """A batch: pool rows, their questions and, for the heads, what the images show."""

    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    questions: list[Question]
    labels: Tensor  # int64 [batch, 9, 3], as in Pool.labels
    tones: Tensor  # int64 [batch], as in Pool.tones

    def by_length(self) -> list[list[int]]:
        """Rows with a short answer, and rows with a description."""
        every = range(len(self.questions))
        short = [row for row in every if self.questions[row].short]
        long = [row for row in every if not self.questions[row].short]
        return [rows for rows in (short, long) if rows]

    def part(self, rows: list[int]) -> Shown:
        """Some rows of it."""
        questions = [self.questions[row] for row in rows]
        return Shown(self.rows[rows], questions, self.labels[rows], self.tones[rows])


def shown(pool: Pool, batch: int, rng: np.random.Generator, diet: Diet, form: Form) -> Shown:
    """Draw a batch of questions about a pool."""
    rows, questions = draw_questions(pool, batch, rng, diet)
    questions = [form.put(question) for question in questions]
    labels, tones = pool.labels[rows].astype(np.int64), pool.tones[rows].astype(np.int64)
    return Shown(rows, questions, torch.from_numpy(labels), torch.from_numpy(tones))


class Heads(nn.Module):
    """What every kind of head gives: a loss, and which of a batch it reads wholly right."""

    def loss(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Cross entropy over `tokens`, float32 `[batch, tokens, width]`."""
        raise NotImplementedError

    def matches(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Which images are read wholly right: bool `[batch]`."""
        raise NotImplementedError

    def asked_loss(self, states: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of what a language model must know to answer, if anything is taught of it.

        Args:
            states: where it says an answer's first token, float32 `[batch, width]`.
            batch: the questions.
        """
        return states.new_zeros(())


class InstructionHeads(Heads):
    """For a Q-Former that reads the question: name the short answer, or recite the scene.

    One head must name the short answer from the mean of the queries, one must recite the scene when
    a description is asked for; both need the instruction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(QFORMER_WIDTH, len(SHORT_ANSWERS))
        self.scene = nn.Linear(QUERIES * QFORMER_WIDTH, len(PLACES) * (sum(CLASSES) + len(CLASSES)))

    def loss(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of both heads."""
        short, wanted = _short(batch)
        loss = functional.cross_entropy(self.answer(tokens[short].mean(1)), wanted)
        for logits, truth in _recital(self.scene(tokens[~short].flatten(1)), batch.labels[~short]):
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), truth.flatten())
        return loss

    def matches(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Which questions the heads answer wholly right: bool `[batch]`."""
        short, wanted = _short(batch)
        right = torch.ones(len(short), dtype=torch.bool)
        right[short] = self.answer(tokens[short].mean(1)).argmax(-1) == wanted
        for logits, truth in _recital(self.scene(tokens[~short].flatten(1)), batch.labels[~short]):
            right[~short] &= (logits.argmax(-1) == truth).all(1)
        return right


class SceneHeads(Heads):
    """For a visual prompt made without the question: recite the whole scene, always.

    Args:
        tokens: of the visual prompt.
        width: of each.
    """

    def __init__(self, tokens: int = QUERIES, width: int = QFORMER_WIDTH) -> None:
        super().__init__()
        self.scene = nn.Linear(tokens * width, len(PLACES) * (sum(CLASSES) + len(CLASSES)))
        self.tone = nn.Linear(tokens * width, len(TONES))
        self.asked = nn.Linear(LANGUAGE_WIDTH, FACTS)

    def loss(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of every place's facts and of the background's tone."""
        flat = tokens.flatten(1)
        loss = 0.2 * functional.cross_entropy(self.tone(flat), batch.tones)
        for logits, truth in _recital(self.scene(flat), batch.labels):
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), truth.flatten())
        return loss

    def matches(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Which scenes are recited without a slip: bool `[batch]`."""
        flat = tokens.flatten(1)
        right: Tensor = self.tone(flat).argmax(-1) == batch.tones
        for logits, truth in _recital(self.scene(flat), batch.labels):
            right &= (logits.argmax(-1) == truth).all(1)
        return right

    def asked_loss(self, states: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of all facts of the digit in question, whichever of them is asked for.

        The answer alone teaches a language model to find a digit and to tell one fact of it only
        together, for which a small one waits long; four facts at once it finds soon.
        """
        rows = [row for row, q in enumerate(batch.questions) if q.about is not None]
        if not rows:
            return super().asked_loss(states, batch)
        abouts = [batch.questions[row].about for row in rows]
        places = torch.tensor([PLACES.index(a) if a else len(PLACES) for a in abouts])
        truths = facts_at(batch.labels[rows], places[:, None])
        return _facts_loss(self.asked(states[rows])[:, None], truths)


class ListHeads(SceneHeads):
    """The same, and the first queries hold one digit each, in reading order, the next the tone.

    A language model finds a digit among tokens as it does among words. Left to themselves, all
    queries hold something of everything: enough to recite, hard to look anything up in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Linear(QFORMER_WIDTH, FACTS)
        self.ground = nn.Linear(QFORMER_WIDTH, len(TONES))

    def loss(self, tokens: Tensor, batch: Shown) -> Tensor:
        """Cross entropy of the whole scene, and of each digit's facts in its own query."""
        ground = functional.cross_entropy(self.ground(tokens[:, MOST]), batch.tones)
        truths = facts_at(batch.labels, listed_places(batch.labels))
        listed = _facts_loss(self.digit(tokens[:, :MOST]), truths)
        return super().loss(tokens, batch) + 0.2 * ground + listed


def listed_places(labels: Tensor) -> Tensor:
    """Places with a digit in reading order, then `len(PLACES)`: int64 `[batch, 3]`."""
    places = torch.arange(len(PLACES)).expand(labels.shape[:2])
    there = torch.where(labels[..., 0] == NOTHING, len(PLACES), places)
    return there.sort(dim=1).values[:, :MOST]


def facts_at(labels: Tensor, places: Tensor) -> list[Tensor]:
    """Value, colour, size and place of digits: int64 as `places`, `[batch, n]`, each.

    At the place `len(PLACES)` there is none, for which each fact has a last class.
    """
    none = torch.tensor(CLASSES).expand(len(labels), 1, -1)
    every = torch.cat([labels, none], dim=1)  # [batch, 10, 3]
    facts = every.gather(1, places.unsqueeze(-1).expand(-1, -1, len(CLASSES)))
    return [*facts.unbind(-1), places]


def _facts_loss(logits: Tensor, truths: list[Tensor]) -> Tensor:
    """Cross entropy summed over facts; `logits` float32 `[batch, n, FACTS]`."""
    sizes = [*(classes + 1 for classes in CLASSES), len(PLACES) + 1]
    loss = logits.new_zeros(())
    for part, truth in zip(torch.split(logits, sizes, dim=-1), truths, strict=True):
        loss = loss + functional.cross_entropy(part.flatten(0, 1), truth.flatten())
    return loss


def _recital(scene: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per fact: logits `[batch, 9, classes + 1]` and truth int64 `[batch, 9]`."""
    places = scene.reshape(len(scene), len(PLACES), -1)
    parts = torch.split(places, [n + 1 for n in CLASSES], dim=-1)
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
