"""Figures as PNG. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iblip.export.errors import OptionError
from iblip.export.system.installing import missing_package
from iblip.serving.bench.figures import Figures
from iblip.serving.bench.searching import Search, rate_of

COLOURS = 32
"""Of the PNG, which has then a quarter of the size."""


def check_plot(path: Path) -> None:
    """Refuses a plot that could not be written after the measurement.

    Raises:
        OptionError: it is no PNG, or there is no such folder.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise OptionError(f"--plot {path}: expected a name that ends in .png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OptionError(f"--plot {path}: expected a file in a folder that is there")
    pyplot()


def pyplot() -> Any:
    """matplotlib's `pyplot`, which draws to files.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise missing_package(error, "A plot") or error from error
    mpl.use("agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Writes a figure, and closes it."""
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
    with Image.open(path) as drawn:
        drawn.quantize(COLOURS).save(path, optimize=True)


def plot_run(path: Path, figures: Figures) -> None:
    """Time to the first text by arrival, and the distribution of all times."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    answered = figures.answered
    left.plot([one.due_s for one in answered], [one.first_s for one in answered], ".", ms=4)
    left.set(xlabel="arrival, s", ylabel="time to first text, s", ylim=0)
    shares = np.linspace(0, 1, 201)
    times = {
        "first text": [one.first_s for one in answered],
        "a token": [one.token_s for one in answered if one.token_s is not None],
        "whole answer": [one.last_s for one in answered],
    }
    for name, seconds in times.items():
        if seconds:
            right.plot(np.quantile(np.array(seconds) * 1e3, shares), shares, label=name)
    right.set(xlabel="milliseconds", ylabel="share of answers", xscale="log")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, path)


def plot_search(path: Path, search: Search) -> None:
    """Share within the objective and goodput, and percentiles of the first text, by rate."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    tried = sorted(search.tried, key=rate_of)
    rates = [rate_of(one) for one in tried]
    left.plot(rates, [100 * (one.share or 0) for one in tried], "o-", label="in the SLO, %")
    objective = tried[0].objective
    assert objective is not None
    left.axhline(100 * objective.share, color="grey", lw=1, ls="--", label="needed, %")
    goodput = left.twinx()
    goodput.plot(rates, [one.goodput for one in tried], "s-", color="C1", label="goodput")
    goodput.set(ylabel="goodput, requests a second (orange)", ylim=0)
    left.set(xlabel="arrivals a second", ylabel="requests in the SLO, % (blue)", ylim=(0, 105))
    for point in ("p50", "p95", "p99"):
        times = [one.first_s[point] for one in tried]
        known = [(rate, time) for rate, time in zip(rates, times, strict=True) if time is not None]
        if known:
            right.plot(*zip(*known, strict=True), "o-", label=f"{point} of first text")
    if objective.ttft_s is not None:
        right.axhline(objective.ttft_s, color="grey", lw=1, ls="--", label="limit of ttft")
    right.set(xlabel="arrivals a second", ylabel="seconds", yscale="log")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if search.rate is not None:
            axes.axvline(search.rate, color="C2", lw=1)
    figure.suptitle(f"SLO: {objective}, {objective.share:.4g} of all requests (green: found)")
    save(figure, path)
