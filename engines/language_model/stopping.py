"""Stop strings in a stream of text: found across deltas, and held back while incomplete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class StopStrings:
    """Ends the text of one answer at a stop string.

    The text ends at the stop string that is completed first, counted in characters (of two that
    end at the same character, the longer), so the end does not depend on how the text was cut into
    deltas.

    Attributes:
        stops: none of them empty.
        stopped: whether one has been found.
    """

    stops: tuple[str, ...] = ()
    stopped: bool = False
    _held: str = ""

    def feed(self, delta: str) -> str:
        """Takes more text; returns the text before any complete or begun stop string.

        After a stop string it returns nothing more.
        """
        if self.stopped:
            return ""
        text = self._held + delta
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = len(text) - self._count_begun(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """Returns the text held back: the answer ended, so no stop string will be completed."""
        held, self._held = self._held, ""
        return held

    def _count_begun(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self.stops):
                return size
        return 0


class StopTokens:
    """Tells whether the last token completes a stop string, for sequences that are not streamed.

    As transformers' `StopStringCriteria`. It is called for every token, so no string was complete
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
        """Whether the last of these tokens completes a stop string."""
        if not self._stops:
            return False
        text = self._tokenizer.decode(list(tokens[-self._reach :]))
        return any(stop in text for stop in self._stops)
