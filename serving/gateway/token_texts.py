"""What tokens say, for log-probabilities: a server reports their ids alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iblip.engines.text.tokens import load_tokenizer
from iblip.export.byte_runs import REPLACEMENT, is_byte

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
"""Stands for a space in the tokens of sentencepiece."""


class TokenTexts:
    """The text and the bytes of each token.

    Args:
        tokenizer: the language model's; without one, a token is `token_id:13`, as in vLLM's
            `return_tokens_as_token_ids`.
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._has_marks = tokenizer is not None and any(
            token.startswith(SPACE)
            for token in tokenizer.encode("a", add_special_tokens=False).tokens
        )

    @classmethod
    def from_file(cls, path: Path | None) -> TokenTexts:
        """Those of a `tokenizer.json`; `None` knows none.

        Raises:
            BuildDirectoryError: it is missing, or is not a tokenizer.
        """
        return cls(None if path is None else load_tokenizer(path))

    def of(self, token_id: int) -> tuple[str, list[int] | None]:
        """The text of a token, and its bytes where it is known that they are those of the text."""
        token = None if self._tokenizer is None else self._tokenizer.id_to_token(token_id)
        if self._tokenizer is None or token is None:
            return f"token_id:{token_id}", None
        if is_byte(token):
            return token, [int(token[3:5], 16)]
        if self._has_marks:
            text = token.replace(SPACE, " ")
        else:
            text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text, None if REPLACEMENT in text else list(text.encode())
