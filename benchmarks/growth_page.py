"""The page of `python -m benchmarks growth`: a table and a plot of the figures in results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.exponents import BEND
from benchmarks.plots import plot_growth

DOCS = Path(__file__).parents[1] / "docs"

HEAD = f"""\
# How the cost grows

`python -m benchmarks growth` measures this and writes the page. An exponent of 1 says that twice
the work costs twice as much; below 1, a part of the cost is the same for all, or shared. It is of
processor time, over all sizes and over the last stretch alone, where what is the same for all
counts least. The curve bends where it changes by more than {BEND}.

The language model is a LLaMA of 0.1 B with random weights in int4 on ONNX Runtime, the vision
encoder has two layers of ViT-g in fp32. Where the axis is another, a prompt has 64 positions and an
answer 16 tokens. The language models of the other sizes are listed in `benchmarks/growth.py`.

| what grows | sizes | processor time, ms | exponent | last stretch | bends at | why |
|---|---|--:|--:|--:|---|---|
"""


def write_page(axes: Mapping[str, Any]) -> None:
    """Writes docs/growth.md and its plot.

    Args:
        axes: figures by the name of the axis.
    """
    threads = sorted({figures["threads"] for figures in axes.values()})
    busiest = max(figures["load"] for figures in axes.values())
    note = (
        f"Threads: {', '.join(map(str, threads))}. Load of the machine before: at most {busiest:g}."
        "\n\n![Plots of the table](images/growth.png)"
    )
    rows = "\n".join(_rows(axes))
    (DOCS / "growth.md").write_text(f"{HEAD}{rows}\n\n{note}\n", encoding="utf-8")
    plot_growth(DOCS / "images" / "growth.png", axes)


def _rows(axes: Mapping[str, Any]) -> Iterator[str]:
    for figures in axes.values():
        first, *_, last = figures["sizes"]
        for name, curve in figures["curves"].items():
            bends = "; ".join(
                f"{bend['size']:g} ({bend['before']:.2f} to {bend['after']:.2f})"
                for bend in curve["bends"]
            )
            cells = (
                f"{figures['title']}{name and ': '}{name}",
                f"{first:g} to {last:g}",
                f"{curve['cpu_ms'][0]:,.0f} to {curve['cpu_ms'][-1]:,.0f}",
                f"{curve['exponent']:.2f}",
                f"{curve['local'][-1]:.2f}",
                bends,
                figures["why"],
            )
            yield f"| {' | '.join(cells)} |"
