"""When a process that ended is restarted: after a short wait first, then after longer ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Restarts:
    """Counts how often a process has ended in a row.

    Attributes:
        limit: after this many ends without a steady run in between, it is not restarted.
        first_s: the first wait, in seconds; each further wait is twice the one before.
        longest_s: the longest wait, in seconds.
        steady_s: a process that was ready for this many seconds ran steadily: the count restarts.
        ends: how often it has ended since the last steady run.
    """

    limit: int = 5
    first_s: float = 0.5
    longest_s: float = 30.0
    steady_s: float = 300.0
    ends: int = 0

    def note_end(self, ran_s: float) -> float | None:
        """Notes that the process has ended.

        Args:
            ran_s: how long the process had been ready, in seconds; 0 if it never was.

        Returns:
            How long to wait before the restart, in seconds; `None` if it is not restarted.
        """
        self.ends = 1 if ran_s >= self.steady_s else self.ends + 1
        if self.ends > self.limit:
            return None
        return min(self.first_s * 2.0 ** (self.ends - 1), self.longest_s)
