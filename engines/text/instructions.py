"""A user's prompt to the Q-Former's instruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from iblip.engines.text.checks import check_prompt
from iblip.engines.text.tokens import check_length, encode, encoding_of, load_tokenizer
from iblip.export.artifact.manifest import Manifest, how_to_raise
from iblip.export.errors import InputError, OptionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHORTEN = "Shorten it, or let truncation cut it."

INSTRUCTION_LENGTHS = (16, 32, 64, 128, 256, 512)
"""Instructions are padded up to one of these, in tokens: few shapes for the engine to prepare."""


@dataclass(frozen=True, kw_only=True)
class InstructionTokenizer:
    """A user's prompt to the Q-Former's instruction.

    Attributes:
        tokenizer: the Q-Former's.
        limit: the longest instruction that its position embeddings hold, in tokens.
        pad_token_id: fills the ids where the mask is 0.
        advice: what to do about an instruction that is too long, for its error.
    """

    tokenizer: Tokenizer
    limit: int
    pad_token_id: int
    advice: str = SHORTEN

    @classmethod
    def from_build(cls, directory: Path, manifest: Manifest) -> Self | None:
        """The instruction tokenizer of a build; `None` where its Q-Former takes no instruction.

        Raises:
            BuildDirectoryError: the tokenizer's file is missing or broken.
        """
        text = manifest.text
        if text.qformer_tokenizer is None:
            return None
        limit, advice = manifest.max_instruction, SHORTEN
        if limit < text.max_instruction:
            advice = (
                f"The engine is built for so many, of the model's {text.max_instruction}; "
                f"{how_to_raise('max_instruction')}. {SHORTEN}"
            )
        return cls(
            tokenizer=load_tokenizer(directory / text.qformer_tokenizer),
            limit=limit,
            pad_token_id=text.qformer_pad_token_id,
            advice=advice,
        )

    def __call__(
        self, *prompts: str, truncation: str = "", max_instruction: int | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """`qformer_input_ids` and `qformer_attention_mask`, int64 `[len(prompts), instruction]`.

        `instruction` is the least of `INSTRUCTION_LENGTHS` that holds the longest prompt, and at
        most the limit. Padding is on the right and masked, so it changes no number.

        Args:
            prompts: as users wrote them.
            truncation: the end, `"left"` or `"right"`, that is cut off a prompt that is too long,
                as a tokenizer's `truncation_side`; empty refuses one.
            max_instruction: tokens that are left of it; `None`, and more than the limit, is the
                limit.

        Raises:
            InputError: a prompt is empty, is not text, or is longer than the limit and not to be
                cut: the Hugging Face processor does not cut unless it is asked to.
            OptionError: `max_instruction` leaves nothing but special tokens.
        """
        if not prompts:
            raise InputError("there is no prompt")
        rows = [self._row(prompt, truncation, max_instruction) for prompt in prompts]
        width = padded_length(max(map(len, rows)), self.limit)
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"qformer_input_ids": ids, "qformer_attention_mask": mask}

    def _row(self, prompt: str, truncation: str, most: int | None) -> list[int]:
        check_prompt(prompt)
        if truncation:
            return self._cut(prompt, truncation, min(most or self.limit, self.limit))
        row = encode(self.tokenizer, prompt, "instruction")
        check_length("instruction", len(row), self.limit, self.advice)
        return row

    def _cut(self, prompt: str, side: str, most: int) -> list[int]:
        """Its ids, at most so many: text is cut off at that side, special tokens stay."""
        special = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if most <= special:
            raise OptionError(
                f"max_instruction is {most}; the tokenizer adds {special} special tokens to any "
                f"instruction: wanted {special + 1} or more"
            )
        text = encoding_of(self.tokenizer, prompt, "instruction", special=False)
        text.truncate(most - special, direction=side)
        return list(self.tokenizer.post_process(text).ids)


def instruction_tensors(
    tokenizer: InstructionTokenizer | None,
    *prompts: str,
    truncation: str = "",
    max_instruction: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """What the Q-Former reads of some prompts, cut as the options say; nothing where it reads none.

    Raises:
        InputError: see `InstructionTokenizer`.
        OptionError: see `InstructionTokenizer`; or `truncation` is given, and no instruction read.
    """
    if tokenizer is not None:
        return tokenizer(*prompts, truncation=truncation, max_instruction=max_instruction)
    if truncation:
        raise OptionError(
            f"truncation is {truncation!r}; it cuts the Q-Former's instruction, and this "
            "model's Q-Former reads none. Leave it out."
        )
    return {}


def padded_length(length: int, limit: int) -> int:
    """The least of `INSTRUCTION_LENGTHS` that holds `length` tokens, and at most `limit`."""
    fitting = (size for size in INSTRUCTION_LENGTHS if size >= length)
    return min(next(fitting, limit), limit)
