"""`Reference`: a checkpoint as transformers runs it in float32, with which builds are compared.

If transformers has the model, it reads the files itself, so that no code of this project stands
between files and answers. Models that it has only the parts of, and the weights of originals'
files, are filled from the checkpoint's tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

PLAIN: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
}
"""Options of `generate` unless the caller overrides them; a generation config does not."""

BATCH = 32
"""Largest number of examples in a batch."""

FIRST: Mapping[str, Any] = {"max_new_tokens": 1, "output_logits": True}
"""Options of `generate` for the raw scores of the first token."""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """An answer of the reference.

    Attributes:
        text: up to the first stop string.
        token_ids: without the token that ended the answer.
        score: of a beam search, if scores were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float | None


class Reference(Protocol):
    """A model in transformers.

    Attributes:
        language_model: transformers' own module.
        parts: transformers' modules by the checkpoint's names for them: `vision_model`, `qformer`
            (where there is one), `language_projection`, `language_model`.
    """

    language_model: Any
    parts: Mapping[str, Any]

    def features(self, pixels: torch.Tensor, **text: torch.Tensor) -> tuple[Any, Any]:
        """Returns `image_embeds` and `visual_prompt`.

        Args:
            pixels: float32 `[batch, 3, height, width]`.
            text: `qformer_input_ids` and `qformer_attention_mask`, if the Q-Former reads them.
        """
        ...

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """Returns the number of tokens of `prompt`, by tokenizer and piece.

        Prompts of one batch must have the same: transformers pads on the left, which changes its
        answers.
        """
        ...

    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """Returns the answers of one batch.

        Args:
            images: Pillow's, one for each prompt.
            prompts: questions.
            options: of transformers' `generate`, added to `PLAIN`.
        """
        ...

    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """Returns the scores of the first token of each answer, float32 `[batch, vocab]`."""
        ...


def answers(
    reference: Reference, images: Sequence[Any], prompts: Sequence[str], **options: Any
) -> Iterator[tuple[list[int], list[ReferenceAnswer]]]:
    """Yields the indices and answers of each batch, for prompts of any lengths.

    Args:
        reference: that answers.
        images: files, one for each prompt.
        prompts: questions.
        options: as in `Reference.generate`.
    """
    from PIL import Image

    for batch in batches(reference, prompts):
        opened = [Image.open(images[index]) for index in batch]
        questions = [prompts[index] for index in batch]
        yield batch, reference.generate(opened, questions, **options)


def batches(reference: Reference, prompts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the indices of prompts that can be one batch: of equal lengths, at most `BATCH`."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[reference.lengths(prompt)].append(index)
    for indices in groups.values():
        for start in range(0, len(indices), BATCH):
            yield indices[start : start + BATCH]
