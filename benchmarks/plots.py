"""Plots of benchmarks, as SVG. Needs matplotlib (`pip install 'iblip[bench]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.load import Got


def plot_load(path: Path, got: Mapping[str, Sequence[Got]]) -> None:
    """Time to first text by arrival, and how time between texts is distributed, by server."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "iblip"  # the same figures, the same file
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, answers in got.items():
        left.plot(
            [one.at_s for one in answers], [one.first_s for one in answers], ".", ms=3, label=name
        )
        gaps = np.sort([gap * 1e3 for one in answers for gap in one.gaps_s])
        right.plot(gaps, np.linspace(0, 1, len(gaps)), label=name)
    left.set(xlabel="arrival, s", ylabel="time to first text, s", yscale="log")
    right.set(xlabel="time between two texts, ms", ylabel="share of all", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
