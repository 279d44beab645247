"""What parametrised tests share: cases of an exhaustive run, and the demos with a server."""

from __future__ import annotations

from typing import Any

import pytest

FAMILIES = ("vicuna", "flant5")
"""The InstructBLIP demos, each behind a server that many tests share."""


def exhaustive(*values: Any) -> Any:
    """A case that `make test-all` runs and `make test` leaves out: others show the same."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
