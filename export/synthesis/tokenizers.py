"""Extends a demo's tokenizer to the vocabulary size of a released model with filler tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Tokenizer = dict[str, Any]
"""Content of `tokenizer.json`."""

SCORE = -1000.0
"""Score of a filler in a Unigram model: it is never part of the most likely segmentation."""


def fill_vocabulary(tokenizer: Tokenizer, size: int, places: Mapping[str, int]) -> Tokenizer:
    """Returns the tokenizer with exactly `size` tokens, so that every id decodes.

    Texts are tokenized as before. Fillers are words of their own, `w00712`, which no text contains
    as a token (only a Unigram model could produce one, from just that spelling).

    Args:
        tokenizer: content of `tokenizer.json`; not changed.
        size: of the vocabulary.
        places: ids that tokens are moved to, by token.

    Returns:
        The new content of `tokenizer.json`.

    Raises:
        ValueError: the tokenizer has more than `size` tokens.
    """
    model = tokenizer["model"]
    tokens = dict(_tokens(tokenizer))
    if max(tokens) >= size:
        raise ValueError(f"the tokenizer has {max(tokens) + 1} tokens, expected at most {size}")
    for token, place in places.items():
        _move(tokens, token, place)
    filler = FILLERS[tokenizer["decoder"]["type"]]
    tokens |= {i: filler.format(i) for i in range(size) if i not in tokens}
    ids = {token: i for i, token in sorted(tokens.items(), key=lambda row: row[0])}
    scores = dict(model["vocab"]) if model["type"] == "Unigram" else None
    vocabulary: Any = ids if scores is None else [[t, scores.get(t, SCORE)] for t in ids]
    added = [{**entry, "id": ids[entry["content"]]} for entry in tokenizer["added_tokens"]]
    return {
        **tokenizer,
        "model": {**model, "vocab": vocabulary},
        "added_tokens": sorted(added, key=lambda entry: int(entry["id"])),
    }


FILLERS: Mapping[str, str] = {
    "Sequence": "▁w{:05}",  # LLaMA
    "Metaspace": "▁w{:05}",  # T5
    "ByteLevel": "Ġw{:05}",  # OPT
    "WordPiece": "[unused{}]",  # as BERT's own vocabulary calls those that it has left free
}
"""Format of a filler by the type of the tokenizer's decoder, such that it decodes to a word with a
space before it."""


def _tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        yield from ((i, token) for i, (token, _) in enumerate(vocabulary))
    else:
        yield from ((i, token) for token, i in vocabulary.items())
    yield from ((entry["id"], entry["content"]) for entry in tokenizer["added_tokens"])


def _move(tokens: dict[int, str], token: str, place: int) -> None:
    """Swaps `token` with the token at id `place`."""
    old = next(i for i, other in tokens.items() if other == token)
    other = tokens.pop(place, None)
    if old != place:
        del tokens[old]
    tokens[place] = token
    if other is not None and old != place:
        tokens[old] = other
