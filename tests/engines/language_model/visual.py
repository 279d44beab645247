"""Visual prompts for small random models."""

from __future__ import annotations

import numpy as np


def visual(seed: int) -> np.ndarray:
    """A visual prompt float32 `[1, 4, 32]`."""
    return np.random.default_rng(seed).standard_normal((1, 4, 32)).astype(np.float32)
