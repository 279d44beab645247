"""transformers answering the same questions, on the same machine, in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image

from engines.verification import equally_long
from export.checkpoint import checkpoint_from_directory
from export.examples import Example
from export.text import language_model_facts
from export.verification.cases import load_reference


class Reference:
    """The checkpoint in transformers, float32, as its documentation runs it.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        checkpoint = checkpoint_from_directory(directory)
        self._model = load_reference(checkpoint)
        self._processor: Any = checkpoint.processor
        self._ends = list(language_model_facts(checkpoint).eos_token_ids)
        self._is_decoder_only = checkpoint.config.use_decoder_only_language_model

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Answers all `examples` in one batch, greedily. They must be equally long, or one."""
        inputs = self._processor(
            images=[Image.open(example.image) for example in examples],
            text=[example.prompt for example in examples],
            return_tensors="pt",
            padding=True,
        )
        ids = self._model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=256)
        if self._is_decoder_only:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def token_ids(
        self, examples: Sequence[Example], **options: Any
    ) -> list[tuple[tuple[int, ...], float]]:
        """Of each example's answer by beam search: tokens without the closing one, and the score.

        Examples whose prompts are equally long are answered in one batch: transformers pads others,
        and padding changes answers.
        """
        found: dict[int, tuple[tuple[int, ...], float]] = {}
        for batch in equally_long(self._processor, examples):
            inputs = self._processor(
                images=[Image.open(examples[index].image) for index in batch],
                text=[examples[index].prompt for index in batch],
                return_tensors="pt",
            )
            made = self._model.generate(
                **inputs,
                do_sample=False,
                eos_token_id=self._ends,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
            before = inputs["input_ids"].shape[1] if self._is_decoder_only else 1
            rows = made.sequences[:, before:].tolist()
            scores = made.sequences_scores.tolist()
            for index, row, score in zip(batch, rows, scores, strict=True):
                ids = tuple(takewhile(lambda token: token not in self._ends, row))
                found[int(index)] = ids, score
        return [found[index] for index in range(len(examples))]
