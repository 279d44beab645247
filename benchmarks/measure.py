"""Measures processes from outside, and times alternatives in turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iblip.export.system.cache_directory import VARIABLE

RESULTS = Path(__file__).with_name("results.json")

VECTORS: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
}
"""By Linux's word for them."""


def save_figures(name: str, figures: Any) -> None:
    """Writes a benchmark's figures to `results.json`, beside those of the others."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, name: figures}, indent=1) + "\n")


def load_figures(name: str) -> dict[str, Any]:
    """The figures of a benchmark in `results.json`; empty if there are none."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return dict(results.get(name, {}))


def processor_name() -> str:
    """The processor's model, and the vector instructions that matter here, as Linux names them."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
    present = facts.get("flags", "").split()
    kinds = [title for flag, title in VECTORS.items() if flag in present]
    return f"{facts.get('model name', platform.processor())} ({', '.join(kinds)})"


def commit() -> str:
    """The commit that is checked out, shortened."""
    words = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def load() -> float:
    """Processes that ran or waited for a processor in the last minute: 0 on a quiet machine."""
    return round(os.getloadavg()[0], 1)


def read_bandwidth(threads: int, mib: int = 512) -> float:
    """Bytes per second that `threads` threads read from memory, in the fastest of four passes."""
    values = np.ones(mib * 2**18, np.float32)
    best = 0.0
    for _ in range(4):
        readers = [
            threading.Thread(target=np.dot, args=(part, part))
            for part in np.array_split(values, threads)
        ]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, values.nbytes / (time.perf_counter() - started))
    return best


@dataclass(frozen=True, kw_only=True)
class Process:
    """A finished process.

    Attributes:
        seconds: wall time.
        peak_mib: largest resident memory, in MiB.
        output: its stdout and stderr.
    """

    seconds: float
    peak_mib: float
    output: str = ""

    def to_json(self) -> dict[str, float]:
        """Times and memory, rounded, JSON-ready."""
        return {"seconds": round(self.seconds, 1), "peak_mib": round(self.peak_mib, 1)}


def run(arguments: Sequence[str], cache: Path | None = None) -> Process:
    """Runs `python -m arguments…` to its end.

    Args:
        arguments: a module and its arguments.
        cache: for `IBLIP_CACHE`; `None` is an empty directory for this run only, so that nothing is
            reused.

    Raises:
        RuntimeError: it failed; the message has its output.
    """
    if cache is None:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as empty:
            return run(arguments, Path(empty))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, VARIABLE: str(cache)},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    text = output.decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{text}")
    return Process(seconds=seconds, peak_mib=usage.ru_maxrss / 1024, output=text)


def in_turns(
    ways: Mapping[str, Callable[[int], Any]], rounds: int, *, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Calls each way in turn with the number of the round, A B C A B C …, and times every call.

    Returns:
        By way: `median_ms`, `p95_ms`, and `ratio` of its median to the first way's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm_up, rounds):
        for name, call in ways.items():
            started = time.perf_counter()
            call(turn % rounds)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return {
        name: {
            "median_ms": round(medians[name] * 1e3, 2),
            "p95_ms": round(statistics.quantiles(values, n=20)[-1] * 1e3, 2),
            "ratio": round(medians[name] / first, 3),
        }
        for name, values in seconds.items()
    }
