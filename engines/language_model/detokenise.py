"""Turns token ids into text as they arrive, in whole characters; joined, exactly the one-shot text.

Decoders are not local. A LLaMA tokenizer decodes a run of byte tokens as a whole, and turns all of
it into replacement characters if any byte does not fit; like T5's, it strips the first space of a
text. So a few tokens that are already shown are decoded again in front of the new ones, and nothing
is shown while a later token could still change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iblip.export.byte_runs import REPLACEMENT, decode, is_byte

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def special_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The tokens that decoding skips. Finding them is slow: do it once per tokenizer."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token.content for token in added.values() if token.special)


class Detokeniser:
    """The text of one answer, token by token.

    The parts returned by `feed` and then `flush`, joined, are exactly
    `tokenizer.decode(ids, skip_special_tokens=True)`, apart from ill-formed bytes.

    Args:
        tokenizer: the language model's.
        special: its `special_tokens`, if the caller has them.
        bytes_apart: as in `export.artifact.manifest.LanguageModelFacts`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: frozenset[str] | None = None,
        *,
        bytes_apart: bool = False,
    ) -> None:
        self._tokenizer, self._bytes_apart = tokenizer, bytes_apart
        self._special = special_tokens(tokenizer) if special is None else special
        self._ids: list[int] = []
        self._context = 0  # index of the first token that is decoded again
        self._shown = 0  # index after the last token that is shown
        self._before = ""  # the tokens from `_context` to `_shown`, decoded
        self._length = 0  # of all text returned, in characters

    def feed(self, token_id: int) -> str:
        """Returns the text that this token completes; empty while a character is incomplete."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._special:
            return ""
        self._ids.append(token_id)
        if is_byte(token):
            return ""
        before, window = self._before, self._decode(self._context)
        if window.endswith(REPLACEMENT) or not window.startswith(before):
            return ""
        alone = self._decode(self._shown)
        if alone:
            self._context, self._before = self._shown, alone
        else:  # a lone space, stripped as the first of a text: no context to lean on
            self._before = window
        self._shown = len(self._ids)
        return self._count(window[len(before) :])

    def flush(self) -> str:
        """Returns the text that was held back, as the one-shot decoding has it."""
        return self._count(self._decode(0)[self._length :])

    def _count(self, text: str) -> str:
        self._length += len(text)
        return text

    def _decode(self, start: int) -> str:
        # Special tokens are left out above, so none is skipped here.
        return decode(self._tokenizer, self._ids[start:], bytes_apart=self._bytes_apart)
