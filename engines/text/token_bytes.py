"""The bytes that each token stands for, whatever kind of tokenizer it is of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from iblip.export.byte_runs import is_byte

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
"""Stands for a space in the tokens of sentencepiece."""


def bytes_of_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token, by its id; none of a special token, or of an id without one.

    sentencepiece's tokens (LLaMA, T5) mark spaces, and may stand for one byte, `<0x0A>`. Those of
    GPT-2's kind (OPT) have a character for each byte.
    """
    added = tokenizer.get_added_tokens_decoder()
    special = {number for number, one in added.items() if one.special}
    names = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    has_byte_characters = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    alphabet = _byte_characters() if has_byte_characters else {}
    return [
        b"" if name is None or number in special else _bytes(name, alphabet)
        for number, name in enumerate(names)
    ]


def marks_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a text's first space is a mark of its beginning, which decoding leaves out."""
    return bool(tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE))


def _bytes(name: str, alphabet: dict[str, int]) -> bytes:
    if alphabet:
        known = all(character in alphabet for character in name)  # an added token is plain text
        return bytes(map(alphabet.__getitem__, name)) if known else name.encode()
    return bytes([int(name[3:5], 16)]) if is_byte(name) else name.replace(SPACE, " ").encode()


def _byte_characters() -> dict[str, int]:
    """The byte of each character. Source: openai/gpt-2, `src/encoder.py`, `bytes_to_unicode`."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    moved = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in shown} | moved
