from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.language_model.memory import zeros_on_demand


def resident() -> int:
    """Bytes of this process's own memory that the system has given."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def test_only_what_is_written_takes_memory():
    before = resident()
    caches = zeros_on_demand((4, 32, 2048, 128), np.float32)
    assert caches.nbytes == 128 << 20
    caches[1, :, 7] = 1.0
    assert resident() - before < 8 << 20
    assert caches.sum() == 32 * 128
    assert not caches[0, 0, :9].any()
