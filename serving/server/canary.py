"""A small question asked again and again: whether the whole chain still answers.

It goes the way of any request (`question.py`). Being refused by a full queue is an
answer too, and a late answer is no fault while the models make progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from iblip.export.errors import DeadlineError, IblipError, QueueFullError, UsageError
from iblip.serving.server.vitals import Fault, Progress

logger = logging.getLogger(__name__)

INTERVAL_S, ANSWER_S = 2.0, 6.0
"""Seconds between two questions, and for an answer. Silence is noticed after their sum."""

SHARE = 0.05
"""Largest share of the time that a slow model may spend on answering the canary."""

FAILURES = 2
"""Errors in a row that are a fault."""


class Canary:
    """Asks from a thread of its own until it is left. A context manager.

    Args:
        ask: asks the question, given seconds for it; raises as a client does.
        progress: what the models have done so far; raises `OSError` if the server does not tell.
    """

    def __init__(self, ask: Callable[[float], object], progress: Callable[[], Progress]) -> None:
        self._question, self._progress = ask, progress
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self.fault: Fault | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        failures, pause_s = 0, INTERVAL_S
        while not self._left.wait(pause_s):
            started = time.monotonic()
            failure = self._ask()
            pause_s = max(INTERVAL_S, (time.monotonic() - started) / SHARE)
            if failure is None:
                failures = 0
                continue
            failures, pause_s = failures + 1, 0.0
            if failures == FAILURES or failure.model:
                self.fault = failure
                return

    def _ask(self) -> Fault | None:
        try:
            before = self._progress()
            self._question(ANSWER_S)
        except (QueueFullError, UsageError):
            return None
        except DeadlineError:
            return self._stuck(before)
        except IblipError as error:
            return Fault(model="", reason=f"it does not answer: {error}")
        except OSError as error:
            return Fault(model="", reason=f"it does not tell its metrics: {error}")
        return None

    def _stuck(self, before: Progress) -> Fault | None:
        """Tells a model that stands still from one that is slow."""
        models = self._progress().stuck(before)
        if models:
            names = " and ".join(models)
            return Fault(model=models[0], reason=f"{names} had work and did none of it")
        return None
