"""Byte tokens that make no character: as sentencepiece decodes them, each apart.

Where any byte of a run of `<0xNN>` tokens does not fit, the `tokenizers` library turns the whole
run into replacement characters, valid bytes such as a line break included. sentencepiece, and with
it the slow tokenizers of the originals, replaces only those bytes that are not part of a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are not, or not yet, a character."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def is_byte(token: str) -> bool:
    """Whether a token stands for one byte."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, bytes_apart: bool) -> str:
    """Returns the text of `ids`, special tokens included.

    Args:
        tokenizer: the language model's.
        ids: tokens of the tokenizer; others are left out.
        bytes_apart: whether ill-formed bytes are replaced one by one. Otherwise the text is the
            tokenizer's own.
    """
    if not bytes_apart or tokenizer.decoder is None:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))
    tokens = [token for token in map(tokenizer.id_to_token, ids) if token is not None]
    return str(tokenizer.decoder.decode(list(replace_stray_bytes(tokens))))


def replace_stray_bytes(tokens: Sequence[str]) -> Iterator[str]:
    """Yields `tokens` with a replacement character for each byte that is in no character.

    Source: google/sentencepiece, `SentencePieceProcessor::Decode`, for runs of byte pieces.
    """
    for is_run, run in groupby(tokens, is_byte):
        if not is_run:
            yield from run
            continue
        data = bytes(int(token[3:5], 16) for token in run)
        while data:
            good, bad, data = _split_at_fault(data)
            yield from (f"<0x{byte:02X}>" for byte in good)
            yield from (REPLACEMENT for _ in bad)


def _split_at_fault(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Splits `data` into what is well-formed UTF-8, the bytes after it that are not, the rest."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start], data[error.start : error.end], data[error.end :]
    return data, b"", b""
