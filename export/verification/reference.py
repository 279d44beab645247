"""`Reference`: a checkpoint as transformers runs it, in float32. What every build is held against.

Where transformers has the model it is read by transformers itself, so that nothing of this project
stands between the files and the answers. The parts of a model that it does not have, and the
weights of originals' files, are filled from the checkpoint's tensors.
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
"""What is asked for unless the caller says otherwise, whatever a generation config has."""

BATCH = 32
"""Examples of one length that are answered at once."""

FIRST: Mapping[str, Any] = {"max_new_tokens": 1, "output_logits": True}
"""Asks `generate` for the scores of the first token, before anything is done to them."""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """One answer.

    Attributes:
        text: before any stop string.
        token_ids: without the token that ended it.
        score: of a beam search whose scores were asked for.
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
        """`image_embeds` and `visual_prompt` of `pixels`, float32 `[batch, 3, height, width]`.

        `text` is `qformer_input_ids` and `qformer_attention_mask`, where the Q-Former reads them.
        """
        ...

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """How many tokens `prompt` has, by tokenizer and piece. Prompts of one batch have the same:
        padding, which transformers would put on the left, changes its answers."""
        ...

    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """Answers of one batch, an image (Pillow's) a prompt.

        `options` are those of transformers' `generate`; `PLAIN` holds where they are silent.
        """
        ...

    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """Float32 `[batch, vocab]` of the first token of each answer, as of one batch."""
        ...


def answers(
    reference: Reference, images: Sequence[Any], prompts: Sequence[str], **options: Any
) -> Iterator[tuple[list[int], list[ReferenceAnswer]]]:
    """Answers to prompts of any lengths, batch by batch, each with its indices.

    Args:
        reference: what is asked.
        images: files, one a prompt.
        prompts: what is asked of it.
        options: as in `Reference.generate`.
    """
    from PIL import Image

    for batch in batches(reference, prompts):
        opened = [Image.open(images[index]) for index in batch]
        asked = [prompts[index] for index in batch]
        yield batch, reference.generate(opened, asked, **options)


def batches(reference: Reference, prompts: Sequence[str]) -> Iterator[list[int]]:
    """Indices of prompts that may be one batch: of the same lengths, and at most `BATCH`."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[reference.lengths(prompt)].append(index)
    for indices in groups.values():
        for start in range(0, len(indices), BATCH):
            yield indices[start : start + BATCH]
