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
        """Of each example's answer by beam search: tokens without the closing one, and the score.

        Examples whose prompts are equally long are answered in one batch: transformers pads others,
        and padding changes answers.
        """
        images, prompts = [e.image for e in examples], [e.prompt for e in examples]
        found: dict[int, tuple[tuple[int, ...], float]] = {}
        for batch, made in answers(self._reference, images, prompts, output_scores=True, **options):
            for index, answer in zip(batch, made, strict=True):
                assert answer.score is not None
                found[index] = answer.token_ids, answer.score
        return [found[index] for index in range(len(examples))]
