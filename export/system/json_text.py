"""JSON from files and callers that may be hostile: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Returns what the JSON holds.

    Args:
        text: UTF-8 if it is bytes.
        unique: whether to refuse an object with the same key twice, of which Python keeps the last.

    Raises:
        ValueError: it is not JSON, is nested too deeply, has an integer of more digits than Python
            reads, or a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:200]!r} occurs twice")
    return found
