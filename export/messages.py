"""Parts of messages: long lists of faults, and suggestions for a name that fits nothing."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST = 500
"""Characters of a value that a message repeats."""

_UNSHOWN = frozenset({"Cc", "Cf", "Cs"})
"""Unicode's categories of what a terminal obeys instead of showing it, and of half characters."""

_KEPT = "\n\t\u200c\u200d"
"""Of those, what texts are laid out with, and the joiners of scripts and emoji."""

SHOWN = 20
"""Number of faults that a message lists; the rest are counted."""


def listed(faults: Sequence[str], count: int | None = None) -> str:
    """Returns the first faults, each on a line, and the number of the others.

    Args:
        faults: in words; those beyond `SHOWN` need not be given.
        count: of all faults, if not all are given.
    """
    more = (len(faults) if count is None else count) - SHOWN
    return "\n  ".join([*faults[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like `name`; `None` where none is.

    Args:
        name: an unknown one.
        known: names that it might be instead.
        cutoff: how alike the two must be at least, from 0 to 1, as `difflib` measures it.
    """
    return next(iter(get_close_matches(name[:LONGEST], list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The sentence that follows a refusal of a misspelt word; empty where no known word is like it.

    It begins with a space: `f"there is no engine {word!r}.{did_you_mean(word, ENGINES)}"`. The
    arguments are those of `closest`.
    """
    near = closest(word, known, cutoff)
    return "" if near is None else f" Did you mean {near!r}?"


def nearest(name: str, others: Iterable[str], label: str = "nearest") -> str:
    """The remark behind a tensor's name that fits nothing; empty where no other is like it.

    `did_you_mean` is for words that a user has typed; nobody types the names of tensors.
    """
    near = closest(name, others)
    return "" if near is None else f" ({label}: {near})"


def shown(value: object) -> str:
    """A value for a message: as Python writes it, but never for pages."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or with thousands of digits
        return f"{kind_of(value)} that is too large to show"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def kind_of(value: object) -> str:
    """What a value is, for a message: `an int`, `a list`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def size_text(count: int) -> str:
    """Bytes in the largest unit of 1,024 that fits, as memory is counted: `1.50 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def printable(text: str) -> str:
    """A text for a terminal: control characters, as names in a file may have, are escaped.

    As JSON escapes them, so that JSON stays what it is.
    """
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in _UNSHOWN
        else json.dumps(character)[1:-1]
        for character in text
    )
