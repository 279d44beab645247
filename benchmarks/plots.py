"""Plots of benchmarks, as PNG. Needs matplotlib (`pip install 'iblip[plot]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iblip.serving.bench.plot import pyplot, save

if TYPE_CHECKING:
    from iblip.serving.bench.running import Outcome
    from iblip.serving.monitoring.panels import Panel


def plot_batching(path: Path, rates: Mapping[str, Any]) -> None:
    """Tokens per second by number of concurrent requests, for each precision."""
    plt = pyplot()
    precisions = [name for name in ("fp32", "int4") if name in rates]
    figure, panels = plt.subplots(1, len(precisions), figsize=(10, 4), squeeze=False)
    for axes, precision in zip(panels[0], precisions, strict=True):
        at_once = rates[precision]["at_once"]
        lines = {
            "engine": {count: figures["engine"] for count, figures in at_once.items()},
            "its graph alone": {count: figures["bare_graph"] for count, figures in at_once.items()},
        }
        for title, line in lines.items():
            axes.plot([int(count) for count in line], list(line.values()), "o-", label=title)
        axes.set(title=precision, xlabel="requests at once", ylabel="tokens per second", ylim=0)
        axes.set_xticks([int(count) for count in at_once])
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def plot_growth(path: Path, axes: Mapping[str, Any]) -> None:
    """Processor time by size, for each axis, with both in logarithms."""
    figure, grid = pyplot().subplots(
        2, -(-len(axes) // 2), figsize=(13, 5.6), squeeze=False, layout="constrained"
    )
    for panel in grid.flat[len(axes) :]:
        panel.remove()
    for panel, figures in zip(grid.flat, axes.values(), strict=False):
        for name, curve in figures["curves"].items():
            milliseconds = np.array(curve["cpu_ms"])
            panel.plot(figures["sizes"], milliseconds, "o-", ms=3, label=name or "measured")
        linear = milliseconds[-1] * np.array(figures["sizes"]) / figures["sizes"][-1]
        panel.plot(figures["sizes"], linear, color="grey", lw=1, ls=":", label="exponent 1")
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(figures["sizes"], [f"{size:g}" for size in figures["sizes"]])
        panel.minorticks_off()
        panel.set_title(figures["title"].partition(" (")[0], fontsize="medium", loc="left")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    for panel in grid[:, 0]:
        panel.set(ylabel="processor time, ms")
    save(figure, path)


def plot_load(path: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Time to first text by arrival, and the distribution of times between texts, by server."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, answers in outcomes.items():
        at = [answer.due_s for answer in answers]
        first = [answer.first_s for answer in answers]
        left.plot(at, first, ".", ms=3, label=name)
        shares = np.linspace(0, 1, 201)
        gaps = np.quantile([gap * 1e3 for answer in answers for gap in answer.gaps_s], shares)
        right.plot(gaps, shares, label=name)
    left.set(xlabel="arrival, s", ylabel="time to first text, s", yscale="log")
    right.set(xlabel="time between two texts, ms", ylabel="share of all", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def plot_chaos(
    path: Path,
    samples: Sequence[tuple[float, float, float]],
    events: Sequence[Mapping[str, Any]],
) -> None:
    """Memory and descriptors over time, and how long the server was not ready after each event.

    Args:
        path: of the PNG.
        samples: seconds, MiB and number of descriptors, while the server was ready.
        events: with `at_s`, `what` and `ready_again_s`.
    """
    plt = pyplot()
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(10, 5.5), sharex=True, layout="constrained"
    )
    seconds, mib, descriptors = zip(*samples[:: max(1, len(samples) // 100)], strict=True)
    above.plot(seconds, mib, color="C0")
    above.set(ylabel="memory (blue), MiB", ylim=0)
    right = above.twinx()
    right.plot(seconds, descriptors, color="C1")
    right.set(ylabel="descriptors (orange)", ylim=0)
    for index, kind in enumerate(sorted({str(event["kind"]) for event in events})):
        chosen = [event for event in events if event["kind"] == kind]
        below.plot(
            [event["at_s"] for event in chosen],
            [event["ready_again_s"] for event in chosen],
            "o",
            ms=4,
            color=f"C{index}",
            label=kind,
        )
    below.axhline(15, color="grey", lw=1)
    below.set(xlabel="seconds", ylabel="ready again after, s")
    below.legend(fontsize="small")
    below.grid(axis="y", alpha=0.3)
    save(figure, path)


def plot_dashboard(
    path: Path, panels: Sequence[tuple[Panel, Mapping[str, Sequence[tuple[float, float]]]]]
) -> None:
    """Panels of the dashboard, four in a row, with the lines of each by legend: seconds, values."""
    plt = pyplot()
    figure, grid = plt.subplots(
        -(-len(panels) // 4), 4, figsize=(13, 5.6), sharex=True, layout="constrained"
    )
    for axes, (panel, lines) in zip(grid.flat, panels, strict=True):
        for name, points in lines.items():
            seconds, values = zip(*points, strict=True)
            if any(values):  # no line for what never happened
                axes.plot(seconds, values, lw=1.2, label=name)
        axes.set_title(panel.title, fontsize="medium", loc="left")
        axes.set(ylabel={"s": "s", "reqps": "per second"}.get(panel.unit), ylim=0)
        axes.grid(alpha=0.3)
        if "" not in lines:
            axes.legend(fontsize="small")
    for axes in grid[-1]:
        axes.set(xlabel="seconds")
    save(figure, path)


def plot_shares(path: Path, ratios: Mapping[str, float]) -> None:
    """A bar for each way: its time as a share of the first one's."""
    figure, axes = pyplot().subplots(figsize=(7, 0.5 + 0.45 * len(ratios)), layout="constrained")
    bars = axes.barh(list(ratios), list(ratios.values()))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel=f"time, as a share of {next(iter(ratios))}'s")
    axes.invert_yaxis()
    save(figure, path)


def plot_ratios(path: Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Bars of times, as ratios to those of the way that each is compared with."""
    rows = -(-len(panels) // 2)
    figure, grid = pyplot().subplots(
        rows, 2, figsize=(12, 2.8 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, ratios) in zip(grid.flat, panels.items(), strict=False):
        bars = axes.barh(list(ratios), list(ratios.values()))
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set_title(title, fontsize="medium")
        axes.margins(x=0.2)
        axes.invert_yaxis()
    save(figure, path)


def plot_losses(path: Path, table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Percentage points of accuracy lost, by policy, with a mark for each demo checkpoint."""
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for demo, policies in table.items():
        lost = {name: figures["points_lost"] for name, figures in policies.items()}
        axes.plot(list(lost.values()), list(lost), "o", alpha=0.7, label=demo)
    axes.axvline(0, color="grey", lw=1)
    axes.set(xlabel="points of accuracy lost against fp32")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save(figure, path)
