"""A demo's tokenizer with the vocabulary of a released model: the demo's words, and fillers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Tokenizer = dict[str, Any]
"""What `tokenizer.json` holds."""

SCORE = -1000.0
"""Of a filler among a Unigram model's pieces: never the likelier way to write a text."""


def filled(tokenizer: Tokenizer, size: int, places: Mapping[str, int]) -> Tokenizer:
    """The same tokenizer with exactly `size` tokens, so that every id decodes.

    Texts become the same tokens as before. Fillers are words of their own, `w00712`, which no text
    becomes (only a Unigram's could, from just that spelling).

    Args:
        tokenizer: as `tokenizer.json` has it. It is left as it is.
        size: of the vocabulary.
        places: token to the id that it is to have.

    Returns:
        What to write as `tokenizer.json`.

    Raises:
        ValueError: the tokenizer has more than `size` tokens.
    """
    model = tokenizer["model"]
    tokens = dict(_tokens(tokenizer))
    if max(tokens) >= size:
        raise ValueError(f"the tokenizer has {max(tokens) + 1} tokens, wanted {size}")
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
"""The tokenizer's decoder to how a filler is written, such that it decodes to a word with a space
before it."""


def _tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        yield from ((i, token) for i, (token, _) in enumerate(vocabulary))
    else:
        yield from ((i, token) for token, i in vocabulary.items())
    yield from ((entry["id"], entry["content"]) for entry in tokenizer["added_tokens"])


def _move(tokens: dict[int, str], token: str, place: int) -> None:
    """Changes the places of `token` and of what is at `place`."""
    found = next(i for i, other in tokens.items() if other == token)
    other = tokens.pop(place, None)
    if found != place:
        del tokens[found]
    tokens[place] = token
    if other is not None and found != place:
        tokens[found] = other
