"""When a process that ended is started again: at once at first, then later and later."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Restarts:
    """Counts the ends of one process after another.

    Attributes:
        limit: ends without a steady run between them, after which no more is started.
        first_s: the first wait, in seconds; each is twice the one before it.
        longest_s: no wait is longer.
        steady_s: a process that was ready for so long was well: the count begins anew.
    """

    limit: int = 5
    first_s: float = 0.5
    longest_s: float = 30.0
    steady_s: float = 300.0
    ends: int = 0

    def ended(self, ran_s: float) -> float | None:
        """Notes an end.

        Args:
            ran_s: how long the process had been ready, in seconds; 0 if it never was.

        Returns:
            How long to wait before the next start, in seconds; `None` where there is none.
        """
        self.ends = 1 if ran_s >= self.steady_s else self.ends + 1
        if self.ends > self.limit:
            return None
        return min(self.first_s * 2.0 ** (self.ends - 1), self.longest_s)
