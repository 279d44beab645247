"""Batches: questions about pool images, as the ids and masks each part of the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .pools import Pool
from .prompts import FORMS, Form
from .questions import CAPTION, KINDS, Question, ask

IGNORED = -100  # a label that costs nothing


@dataclass(frozen=True)
class Diet:
    """What a model is asked in training.

    Attributes:
        shares: of the kinds of question, in any unit.
        short: weight of the short answers' loss, descriptions having the rest; None counts every
            token alike, by which a description counts ten times as much.
    """

    shares: Mapping[str, float]
    short: float | None = None

    def weight(self, question: Question, tokens: float) -> float:
        """Of the loss of the answers that are short, or long, as this question's is.

        Args:
            question: one of them.
            tokens: their share of the batch's answer tokens.
        """
        if self.short is None:
            return tokens
        return self.short if question.short else 1 - self.short


ALIKE = dict.fromkeys(KINDS, 1.0)
# Descriptions name up to twelve facts; they get the larger share of the questions.
INSTRUCTED = Diet({**ALIKE, "describe": 2.0, "detail": 3.0})
# A Q-Former without instruction has learnt to recite; what takes long is to find an answer in that.
PLAIN = Diet({**ALIKE, "detail": 1.5}, short=0.7)
CAPTIONED = Diet({**PLAIN.shares, CAPTION: 0.5}, short=0.7)


@dataclass(frozen=True)
class TextBatch:
    """What the language model reads and should say; `labels` carry `IGNORED` outside the answer.

    For a decoder the answer follows the prompt in `ids`; for an encoder-decoder `ids` is the
    prompt and `labels` the answer. All int64 `[batch, length]`, padded on the right. `before` is
    what the model reads ahead of the image: int64 `[n]`, the same for every row.
    """

    before: Tensor

    ids: Tensor
    mask: Tensor
    labels: Tensor


class Encoder:
    """Turns prompts and answers into ids, remembering what it has seen.

    Args:
        language: the language model's tokenizer.
        qformer: the Q-Former's tokenizer.
        decoder_only: whether the answer continues the prompt (LLaMA) or stands apart (T5).
        form: how questions are put.
    """

    def __init__(
        self,
        language: PreTrainedTokenizerBase,
        qformer: PreTrainedTokenizerBase,
        *,
        decoder_only: bool,
        form: Form = FORMS["plain"],
    ) -> None:
        self.language = language
        self.qformer = qformer
        self.decoder_only = decoder_only
        self.form = form
        self._seen: dict[tuple[str, str], list[int]] = {}

    @cached_property
    def _before(self) -> list[int]:
        return list(self.language(self.form.before)["input_ids"]) if self.form.before else []

    @cached_property
    def _eos(self) -> list[int]:
        return [] if self.form.end else [int(self.language.eos_token_id)]

    def _ids(self, role: str, text: str) -> list[int]:
        if (role, text) not in self._seen:
            if role == "qformer":
                ids = self.qformer(text)["input_ids"]
            elif role == "prompt":
                first = not self.form.before  # special tokens go with the first piece of text
                ids = self.language(self.form.after(text), add_special_tokens=first)["input_ids"]
            else:
                said = f"{self.form.lead}{text}{self.form.end}"
                ids = [*self.language(said, add_special_tokens=False)["input_ids"], *self._eos]
            self._seen[role, text] = ids
        return self._seen[role, text]

    def text(self, prompts: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Prompts with their answers, for the language model."""
        asked = [self._ids("prompt", prompt) for prompt in prompts]
        said = [self._ids("answer", answer) for answer in answers]
        pad = int(self.language.pad_token_id)
        before = torch.tensor(self._before, dtype=torch.int64)
        if not self.decoder_only:
            ids, mask = padded(asked, pad)
            return TextBatch(before, ids, mask, padded(said, IGNORED)[0])
        ids, mask = padded([[*a, *b] for a, b in zip(asked, said, strict=True)], pad)
        unscored = [[IGNORED] * len(a) + b for a, b in zip(asked, said, strict=True)]
        return TextBatch(before, ids, mask, padded(unscored, IGNORED)[0])

    def instruction(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask for the Q-Former: int64 `[batch, length]` each."""
        pad = int(self.qformer.pad_token_id or 0)
        return padded([self._ids("qformer", prompt) for prompt in prompts], pad)


def padded(rows: Iterable[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Pad on the right: ids and mask, int64 `[rows, longest]`."""
    rows = list(rows)
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def draw_questions(
    pool: Pool, batch: int, rng: np.random.Generator, diet: Diet
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[Question]]:
    """Pick `batch` questions by kind, each with an image it can be asked of.

    Returns:
        Rows of the pool, int64 `[batch]`, and the questions.
    """
    names = list(diet.shares)
    shares = np.array(list(diet.shares.values()))
    kinds = rng.choice(len(names), size=batch, p=shares / shares.sum())
    rows, questions = np.empty(batch, np.int64), []
    for number, kind in enumerate(kinds):
        question = None
        while question is None:
            rows[number] = rng.integers(len(pool))
            question = ask(names[kind], pool.scene(int(rows[number])), rng)
        questions.append(question)
    return rows, questions
