"""The page of `python -m benchmarks peers`: tables and a plot of the figures in results.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.plots import plot_ratios

DOCS = Path(__file__).parents[1] / "docs"

HEAD = """\
# Beside other programs

`python -m benchmarks peers` runs this project and others on one machine, alternating, each in a
process of its own, and writes this page, with a chapter for each processor. Milliseconds are
medians on the clock. In brackets is the ratio to the first of the same precision, so above 1 is
slower. All weights but the demo's are random.
"""

STEPS = (
    "| | prompt of 64 | step of 1 | of 4 | of 8 | of 16 | version |\n|---|--:|--:|--:|--:|--:|---|"
)
PLAIN = "| | ms | ratio |\n|---|--:|--:|"


def write_page(processors: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes docs/peers.md and its plots.

    Args:
        processors: by name, the figures by the name of the part.
    """
    sections = {
        "language_model": _language_model,
        "vision": _vision,
        "answer": _answer,
    }
    lines = [HEAD]
    for processor, parts in processors.items():
        plot = f"images/peers-{'-'.join(re.findall('[a-z0-9]+', processor.lower()))}.png"
        lines += [f"## {processor}\n"]
        for name, figures in parts.items():
            lines += sections[name](figures)
            lines += [
                f"\nAt commit `{figures['commit']}`, threads: {figures['threads']}. Load of the"
                f" machine before: {figures['load']:g}.\n"
            ]
        lines += [f"![The ratios]({plot})\n"]
        plot_ratios(DOCS / plot, _panels(parts))
    (DOCS / "peers.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _language_model(figures: Mapping[str, Any]) -> Iterator[str]:
    shape = ", ".join(f"{name} {size}" for name, size in figures["model"].items())
    yield f"### A language model\n\nLLaMA ({shape}).\n\n{STEPS}"
    ways = figures["ways"]
    for title, way in ways.items():
        if "works" in way:
            base = ways[way["beside"]]["works"]
            cells = [
                f"{times['ms']:.0f} ({times['ms'] / base[work]['ms']:.2f})"
                for work, times in sorted(way["works"].items(), key=_in_order)
            ]
            yield f"| {title} | {' | '.join(cells)} | {way['version']} |"
    yield ""
    for title, way in ways.items():
        if "missing" in way:
            yield f"- {title}: not installed. `{way['missing']}`"
        if "failed" in way:
            yield f"- {title}: failed, {way['failed']}"


def _in_order(work: tuple[str, Any]) -> int:
    """The prompt, then steps by the number of sequences."""
    return int(work[0].rpartition(" ")[2]) if work[0] != "prompt" else 0


def _vision(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"### A vision encoder\n\nViT-g, {figures['layers']} layers, one image.\n\n{PLAIN}"
    yield from _plain(figures["ways"])


def _answer(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"### A short answer\n\nThe LLaMA demo, a new image in each call.\n\n{PLAIN}"
    yield from _plain(figures["ways"])


def _plain(ways: Mapping[str, Any]) -> Iterator[str]:
    for title, way in ways.items():
        yield f"| {title.replace('_', ' ')} | {way['median_ms']:.1f} | {way['ratio']:.2f} |"


def _panels(parts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Ratios by way, of each panel of the plot."""
    panels: dict[str, dict[str, float]] = {}
    if "language_model" in parts:
        ways = parts["language_model"]["ways"]
        for work in ("prompt", "step of 1", "step of 8"):
            panels[f"language model, {work}"] = {
                title: way["works"][work]["ms"] / ways[way["beside"]]["works"][work]["ms"]
                for title, way in ways.items()
                if "works" in way
            }
    for name in ("vision", "answer"):
        if name in parts:
            panels[name] = {title: way["ratio"] for title, way in parts[name]["ways"].items()}
    return panels
