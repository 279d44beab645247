"""Tokenises a user's prompt as the Q-Former's instruction."""

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
"""Lengths in tokens that instructions are padded to, so that the engine prepares few shapes."""


@dataclass(frozen=True, kw_only=True)
class InstructionTokenizer:
    """Tokenises a user's prompt as the Q-Former's instruction.

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
        """The instruction tokenizer of a build; `None` if its Q-Former takes no instruction.

        Raises:
            BuildDirectoryError: the tokenizer's file is missing or broken.
        """
        text = manifest.text
        if text.qformer_tokenizer is None:
            return None
        limit, advice = manifest.max_instruction, SHORTEN
        if limit < text.max_instruction:
            advice = (
                f"The engine is built for {limit} of the model's {text.max_instruction}; "
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

        `instruction` is the smallest of `INSTRUCTION_LENGTHS` that holds the longest prompt, and at
        most the limit. Padding is on the right and masked, so it changes no result.

        Args:
            prompts: as users wrote them.
            truncation: the end at which a prompt that is too long is cut, `"left"` or `"right"`,
                as a tokenizer's `truncation_side`; empty refuses such a prompt.
            max_instruction: the length that it is cut to, in tokens; `None`, and anything above
                the limit, is the limit.

        Raises:
            InputError: a prompt is empty, is not text, or is longer than the limit while
                `truncation` is empty. (The Hugging Face processor does not cut by default either.)
            OptionError: `max_instruction` leaves nothing but special tokens.
        """
        if not prompts:
            raise InputError("there is no prompt")
        rows = [self._encode(prompt, truncation, max_instruction) for prompt in prompts]
        width = padded_length(max(map(len, rows)), self.limit)
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)  # [prompts, width]
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"qformer_input_ids": ids, "qformer_attention_mask": mask}

    def _encode(self, prompt: str, truncation: str, max_instruction: int | None) -> list[int]:
        check_prompt(prompt)
        if truncation:
            limit = min(max_instruction or self.limit, self.limit)
            return self._truncate(prompt, truncation, limit)
        row = encode(self.tokenizer, prompt, "instruction")
        check_length("instruction", len(row), self.limit, self.advice)
        return row

    def _truncate(self, prompt: str, side: str, limit: int) -> list[int]:
        """At most `limit` ids of the prompt: text is cut at `side`, special tokens stay."""
        special = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if limit <= special:
            raise OptionError(
                f"max_instruction is {limit}; the tokenizer adds {special} special tokens to any "
                f"instruction: expected {special + 1} or more"
            )
        text = encoding_of(self.tokenizer, prompt, "instruction", special=False)
        text.truncate(limit - special, direction=side)
        return list(self.tokenizer.post_process(text).ids)


def instruction_tensors(
    tokenizer: InstructionTokenizer | None,
    *prompts: str,
    truncation: str = "",
    max_instruction: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The Q-Former's text inputs for some prompts; empty if it reads no instruction.

    Raises:
        InputError: see `InstructionTokenizer`.
        OptionError: see `InstructionTokenizer`; or `truncation` is set and no instruction is read.
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
    """The smallest of `INSTRUCTION_LENGTHS` that holds `length` tokens, and at most `limit`."""
    fitting = (size for size in INSTRUCTION_LENGTHS if size >= length)
    return min(next(fitting, limit), limit)
