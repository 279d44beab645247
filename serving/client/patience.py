"""How long a client waits, and what it tries again. Does no I/O.

A question is asked again only where nothing of its answer has reached the caller, and never beyond
its total timeout. `Attempts` decides; the clients wait and send.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Any

from iblip.export.errors import DeadlineError, IblipError, OptionError
from iblip.export.messages import shown
from iblip.serving.client.errors import DisconnectedError, NotReadyError, UnreachableError

LONGEST_TIMEOUT_S = 1e9
"""The longest timeout, about 30 years; gRPC's and Triton's numbers end not far behind it."""

LONGEST_DOWN_S = 1.0
"""The longest pause while a server is down: asking whether it is back costs nobody anything."""

LEAST_PAUSE_S = 0.05
"""With less time left than this, nothing is tried again."""


class Unset(Enum):
    """The type of `UNSET`, the default of an argument for which `None` means something."""

    UNSET = "the client's own"

    def __repr__(self) -> str:
        return f"<{self.value}>"


UNSET = Unset.UNSET


def check_seconds(name: str, seconds: Any) -> None:
    """Refuses what is neither a number above 0 nor `None`. Raises `OptionError`."""
    if seconds is None:
        return
    is_number = isinstance(seconds, Real) and not isinstance(seconds, bool)
    if is_number and 0 < float(seconds) <= LONGEST_TIMEOUT_S:
        return
    expected = f"more than 0 seconds, at most {LONGEST_TIMEOUT_S:g}, or None"
    raise OptionError(f"{name} is {shown(seconds)}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """How long a client waits. A number stands for both: `timeout=30` is `connect=30, total=30`.

    Attributes:
        connect: seconds for which a server that does not answer, or is starting or stopping, is
            tried again; also the longest that one connection may take to be made. 0 tries once;
            `None` tries until `total`. Raise it to wait while a server restarts, which takes a
            large model minutes.
        total: seconds for a whole answer with all that is tried again: enough for a long answer of
            a large model on a CPU. The server drops the request then, too. `None` is for ever.

    Raises:
        OptionError: a number is negative, is not a number, or is above 1e9.
    """

    connect: float | None = 5.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        if self.connect != 0:
            check_seconds("connect", self.connect)
        check_seconds("total", self.total)

    @classmethod
    def settled(cls, timeout: Timeout | float | Unset | None, default: Timeout) -> Timeout:
        """What an argument stands for: nothing given is `default`, a number is both."""
        if timeout is UNSET:
            return default
        if isinstance(timeout, cls):
            return timeout
        seconds: Any = timeout
        check_seconds("timeout", seconds)
        return cls(connect=seconds, total=seconds)


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Whether a question that a server did not answer is sent again, and when.

    A full queue is retryable; so is a connection that broke before the answer began, but only once:
    the question may be what ended the server. A server that cannot be reached, or is not ready, has
    not been asked: that is `Timeout.connect`. `error.is_retryable` says what is retryable.

    The first pause is `first_s`, each further one twice as long, up to `longest_s`; a random half
    is taken off, so that many clients do not come back at once. Where the server says when to come
    back (`retry-after`, `grpc-retry-pushback-ms`), that is when.

    Attributes:
        limit: most times that one question is sent again. 0 is never; `None` is as often as
            `Timeout.total` allows.
        first_s: seconds until it is sent for the second time.
        longest_s: the longest pause.

    Raises:
        OptionError: a number is negative, or `longest_s` is below `first_s`.
    """

    limit: int | None = None
    first_s: float = 0.1
    longest_s: float = 5.0

    def __post_init__(self) -> None:
        if self.limit is not None and not (
            isinstance(self.limit, int) and not isinstance(self.limit, bool) and self.limit >= 0
        ):
            raise OptionError(f"retries is {shown(self.limit)}; expected 0 or more, or None")
        check_seconds("first_s", self.first_s)
        check_seconds("longest_s", self.longest_s)
        if self.longest_s < self.first_s:
            raise OptionError(f"{self}: longest_s is below first_s")

    @classmethod
    def settled(cls, retries: Retries | int | None) -> Retries:
        """What a client's argument stands for: a number is the limit."""
        return retries if isinstance(retries, cls) else cls(limit=retries)  # type: ignore[arg-type]

    def pause(self, number: int) -> float:
        """Seconds before the question is sent again for the `number`-th time, from 1."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(number - 1, 64))
        return longest * random.uniform(0.5, 1.0)


class Deadline:
    """A time budget that several calls share.

    Args:
        timeout_s: seconds from now; `None` is no limit.

    Raises:
        OptionError: `timeout_s` is not a number above 0, or above `LONGEST_TIMEOUT_S`.
    """

    def __init__(self, timeout_s: float | None) -> None:
        check_seconds("timeout_s", timeout_s)
        self._end = None if timeout_s is None else time.monotonic() + float(timeout_s)

    def remaining(self, late: IblipError | None = None) -> float | None:
        """Seconds left; `None` where there is no limit.

        Raises:
            DeadlineError: it is over; or `late`, where that is given.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise late or DeadlineError(LATE)
        return left


class Attempts:
    """Decides for one question what is tried again, and when. The budget begins when it is made."""

    def __init__(self, timeout: Timeout, retries: Retries) -> None:
        self.deadline = Deadline(timeout.total)
        self._timeout, self._retries = timeout, retries
        self._down_since: float | None = None
        self._pauses = self._resent = self._lost = 0
        self._fault: IblipError | None = None
        self._left_when_sent: float | None = None

    @property
    def fault(self) -> IblipError | None:
        """What went wrong the last time, if anything did."""
        return self._fault

    def remaining(self) -> float | None:
        """Seconds left for the question; `None` where there is no limit.

        Raises:
            DeadlineError: there are none; or what went wrong the last time, if anything did.
        """
        self._left_when_sent = self.deadline.remaining(self._fault)
        return self._left_when_sent

    def pause(self, fault: IblipError, *, begun: bool = False) -> float:
        """Seconds to wait before the question is sent again.

        Args:
            fault: what ended the attempt.
            begun: whether part of the answer has been received.

        Raises:
            IblipError: `fault`, where it is not to be sent again.
        """
        if isinstance(fault, DeadlineError) and self._fault and self._is_used_up:
            raise self._fault from fault
        left = self._left(fault)
        if begun or not fault.is_retryable or (left is not None and left < LEAST_PAUSE_S):
            raise fault
        self._fault = fault
        self._pauses += 1
        hint = fault.retry_after_s
        seconds = self._retries.pause(self._pauses) if hint is None else hint
        if hint is None and self._down_since is not None:
            seconds = min(seconds, LONGEST_DOWN_S)
        if left is None or seconds < left:
            return seconds
        if hint is not None:  # earlier than the server has said is no use, and then is too late
            raise fault
        return left / 2

    @property
    def is_only_one(self) -> bool:
        """Whether nothing is ever sent again."""
        return self._timeout.connect == 0 and self._retries.limit == 0

    @property
    def _is_used_up(self) -> bool:
        """Whether earlier attempts, rather than the last one, used most of the time."""
        total, left = self._timeout.total, self._left_when_sent
        return total is not None and left is not None and left < total / 2

    def _left(self, fault: IblipError) -> float | None:
        """Seconds for which such a fault is tried again; `None` is no limit."""
        left = self.deadline.remaining(fault)
        if isinstance(fault, UnreachableError | NotReadyError):
            now = time.monotonic()
            self._down_since = self._down_since or now
            connect = self._timeout.connect
            down = None if connect is None else connect - (now - self._down_since)
            return down if left is None else left if down is None else min(left, down)
        self._down_since = None
        self._resent += 1
        self._lost += isinstance(fault, DisconnectedError)
        limit = self._retries.limit
        return 0.0 if self._lost > 1 or (limit is not None and self._resent > limit) else left


ONE_ATTEMPT = Timeout(connect=0, total=None)
"""Fails at once where no server answers, and waits for ever for an answer."""

WAITING = Retries(longest_s=1.0)
"""How a server is asked again whether it is ready."""

LATE = (
    "the answer was not finished by its deadline. Allow more time with timeout= (--timeout), or "
    "ask for less with max_new_tokens."
)
