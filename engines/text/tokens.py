"""Reads a build's tokenizer files, and turns texts into token ids with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.export.errors import BuildDirectoryError, InputError
from iblip.export.system.files import refuse_irregular

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizers` file, and turns off any padding or truncation written into it.

    Raises:
        BuildDirectoryError: the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        refuse_irregular(path)
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for everything
        message = f"{path} cannot be read as a tokenizer ({error}). Build the directory again."
        raise BuildDirectoryError(message) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, what: str, *, special: bool = True) -> list[int]:
    """The token ids of `text`. Arguments and errors as in `encoding_of`."""
    return list(encoding_of(tokenizer, text, what, special=special).ids)


def encoding_of(tokenizer: Tokenizer, text: str, what: str, *, special: bool) -> Any:
    """The `tokenizers.Encoding` of `text`, with special tokens or without.

    Raises:
        InputError: the text cannot be written as UTF-8; the message calls it `what`.
    """
    # A batch of one: alone, a text is tokenised without letting another thread run.
    encode: Callable[..., Any] = tokenizer.encode_batch
    try:
        return encode([text], add_special_tokens=special)[0]
    except (TypeError, UnicodeError) as error:  # a lone surrogate cannot be written as UTF-8
        raise InputError(f"the {what} is not valid Unicode text ({error})") from error


def check_length(what: str, length: int, limit: int, advice: str) -> None:
    """Refuses a text of more than `limit` tokens.

    Raises:
        InputError: the message has both numbers, and `advice`.
    """
    if length > limit:
        raise InputError(f"the {what} has {length} tokens; at most {limit} fit. {advice}")


def answers_from_text(
    tokenizer: Tokenizer, texts: Sequence[str], *, closed: bool
) -> list[tuple[int, ...]]:
    """The token ids of each text as an answer, which begins like a word after a space.

    LLaMA's and T5's tokenizers mark the beginning of any text this way. For others, such as OPT's,
    a space is put before the text.

    Args:
        tokenizer: the language model's.
        texts: as the user wrote them.
        closed: whether to add the tokenizer's special tokens, such as T5's closing one.
    """
    marked = tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
    spelt = (text if marked or text[0].isspace() else f" {text}" for text in texts)
    return [tuple(tokenizer.encode(text, add_special_tokens=closed).ids) for text in spelt]


def words_from_text(tokenizer: Tokenizer, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each word at the beginning of a text and after a space, without repeats."""
    spelt = (text for word in words for text in (word, f" {word}"))
    ids = (tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in spelt)
    return [word_ids for word_ids in dict.fromkeys(ids) if word_ids]
