"""transformers answering the same questions, on the same machine, in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.examples import Example
from iblip.export.verification.reference import answers
from iblip.export.verification.references import reference_of


class Reference:
    """The checkpoint in transformers, float32, as its documentation runs it.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._reference = reference_of(checkpoint_from_directory(directory))

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Answers all `examples` in one batch, greedily. They must be equally long, or one."""
        images = [Image.open(example.image) for example in examples]
        prompts = [example.prompt for example in examples]
        return [answer.text for answer in self._reference.generate(images, prompts)]

    def token_ids(
        self, examples: Sequence[Example], **options: Any
    ) -> list[tuple[tuple[int, ...], float]]:
        """The beam-search answer to each example: its tokens but the closing one, and its score.

        Only examples with equally long prompts share a batch: transformers pads others, and padding
        changes answers.
        """
        images, prompts = [e.image for e in examples], [e.prompt for e in examples]
        results: dict[int, tuple[tuple[int, ...], float]] = {}
        for batch, replies in answers(
            self._reference, images, prompts, output_scores=True, **options
        ):
            for index, answer in zip(batch, replies, strict=True):
                assert answer.score is not None
                results[index] = answer.token_ids, answer.score
        return [results[index] for index in range(len(examples))]
