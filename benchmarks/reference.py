"""transformers answering the same questions, on the same machine, in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from export.checkpoint import checkpoint_from_directory
from export.examples import Example
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
