"""Batches: questions about pool pictures, as the ids and masks each part of the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .pools import Pool
from .questions import KINDS, Question, ask

# Descriptions name up to twelve facts; they get the larger share of the questions.
SHARES = {kind: 3.0 if kind == "detail" else 2.0 if kind == "describe" else 1.0 for kind in KINDS}
IGNORED = -100  # a label that costs nothing


@dataclass(frozen=True)
class TextBatch:
    """What the language model reads and should say; `labels` carry `IGNORED` outside the answer.

    For a decoder the answer follows the prompt in `ids`; for an encoder-decoder `ids` is the
    prompt and `labels` the answer. All int64 `[batch, length]`, padded on the right.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor


class Encoder:
    """Turns prompts and answers into ids, remembering what it has seen.

    Args:
        language: the language model's tokenizer.
        qformer: the Q-Former's tokenizer.
        decoder_only: whether the answer continues the prompt (LLaMA) or stands apart (T5).
    """

    def __init__(
        self,
        language: PreTrainedTokenizerBase,
        qformer: PreTrainedTokenizerBase,
        *,
        decoder_only: bool,
    ) -> None:
        self.language = language
        self.qformer = qformer
        self.decoder_only = decoder_only
        self._seen: dict[tuple[str, str], list[int]] = {}

    @cached_property
    def _eos(self) -> int:
        return int(self.language.eos_token_id)

    def _ids(self, role: str, text: str) -> list[int]:
        if (role, text) not in self._seen:
            if role == "qformer":
                ids = self.qformer(text)["input_ids"]
            elif role == "prompt":
                ids = self.language(text)["input_ids"]
            else:
                ids = [*self.language(text, add_special_tokens=False)["input_ids"], self._eos]
            self._seen[role, text] = ids
        return self._seen[role, text]

    def text(self, prompts: Sequence[str], answers: Sequence[str]) -> TextBatch:
        """Prompts with their answers, for the language model."""
        asked = [self._ids("prompt", prompt) for prompt in prompts]
        said = [self._ids("answer", answer) for answer in answers]
        pad = int(self.language.pad_token_id)
        if not self.decoder_only:
            ids, mask = padded(asked, pad)
            return TextBatch(ids, mask, padded(said, IGNORED)[0])
        ids, mask = padded([[*a, *b] for a, b in zip(asked, said, strict=True)], pad)
        unscored = [[IGNORED] * len(a) + b for a, b in zip(asked, said, strict=True)]
        return TextBatch(ids, mask, padded(unscored, IGNORED)[0])

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
    pool: Pool, batch: int, rng: np.random.Generator
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[Question]]:
    """Pick `batch` questions by kind, each with a picture it can be asked of.

    Returns:
        Rows of the pool, int64 `[batch]`, and the questions.
    """
    names = list(SHARES)
    shares = np.array(list(SHARES.values()))
    kinds = rng.choice(len(names), size=batch, p=shares / shares.sum())
    rows, questions = np.empty(batch, np.int64), []
    for number, kind in enumerate(kinds):
        question = None
        while question is None:
            rows[number] = rng.integers(len(pool))
            question = ask(names[kind], pool.scene(int(rows[number])), rng)
        questions.append(question)
    return rows, questions
