"""How long a killed caller is felt: the next one waits, and what it had is not yet free."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.builds import build
from benchmarks.hostile import vanish
from benchmarks.served import BUSY, engine_metrics, serve
from iblip.serving.client import Client, GenerationOptions
from iblip.serving.client.patience import ONE_ATTEMPT

ROUNDS = 5


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Medians and the longest, in seconds after a caller with eight long streams was killed."""
    next_s, free_s = [], []
    with (
        serve(build(checkpoint, scratch)) as server,
        Client(server.grpc_url, timeout=ONE_ATTEMPT, retries=0) as client,
    ):
        wanted = client.contract().preprocessing
        image = np.zeros((wanted.height, wanted.width, 3), np.uint8)
        for _ in range(ROUNDS):
            vanish(server.grpc_url)
            killed = time.monotonic()
            client.ask(image, "What is it?", options=GenerationOptions(max_new_tokens=1))
            next_s.append(time.monotonic() - killed)
            while any(engine_metrics(server)[name] for name in BUSY):
                time.sleep(0.01)
            free_s.append(time.monotonic() - killed)
    return {
        name: {"median": round(statistics.median(times), 3), "longest": round(max(times), 3)}
        for name, times in (("next_answer_s", next_s), ("free_s", free_s))
    }
