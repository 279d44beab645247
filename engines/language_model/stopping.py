"""Stop strings over a stream of text: found across any borders, and held back while partial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class StopStrings:
    """Watches the text of one answer.

    The text ends at the stop string that is complete first, counted in characters (of two that
    end at the same character, the longer), so where it ends does not depend on how the text was
    cut into deltas.

    Attributes:
        stops: none of them empty.
        stopped: whether one has been found.
    """

    stops: tuple[str, ...] = ()
    stopped: bool = False
    _held: str = ""

    def feed(self, delta: str) -> str:
        """Takes more text and returns what can be shown: before any stop string, whole or begun.

        After a stop string nothing more is returned.
        """
        if self.stopped:
            return ""
        text = self._held + delta
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = len(text) - self._begun(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What is still held back: the answer ended, so no stop string will be completed."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self.stops):
                return size
        return 0


class StopTokens:
    """Whether the last of some tokens completes a stop string, for sequences that are not streamed.

    As transformers' `StopStringCriteria`; it is asked at every token, so no string is complete
    before the last one.

    Args:
        tokenizer: the language model's.
        stops: none of them empty.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        # A token is a byte at least; one more, because a decoder may strip the first one's space.
        self._reach = 1 + max((len(stop.encode()) for stop in stops), default=0)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether it does."""
        if not self._stops:
            return False
        text = self._tokenizer.decode(list(tokens[-self._reach :]))
        return any(stop in text for stop in self._stops)
