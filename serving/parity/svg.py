"""Plots as SVG text. Colours are CSS variables of the page, so they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 30

LETTER = 9
"""Largest width of a letter in a label, in pixels."""

COLOURS = 6
"""Number of the page's variables `--c0`, `--c1`, …; after the last, colours repeat."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot.

    Attributes:
        name: shown under the pointer.
        values: one for each label of the horizontal axis; 0 or less is drawn at the lower edge.
        colour: index of its colour.
        style: a class of the page: `stream`, `own` or `band`.
    """

    name: str
    values: Sequence[float]
    colour: int
    style: str


def line_plot(title: str, labels: Sequence[str], lines: Sequence[Line]) -> str:
    """Lines over a labelled horizontal axis, with a logarithmic vertical axis.

    Args:
        title: read by screen readers.
        labels: of the horizontal axis; some are left out if there are many.
        lines: at least one, each with a value for every label.
    """
    finite = [v for line in lines for v in line.values if 0 < v < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    high = max(high, low + 1)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / len(labels)

    def y(value: float) -> float:
        at = high if value == math.inf else max(math.log10(value), low) if value > 0 else low
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - at) / (high - low)

    parts = [_grid(low, high, y), _axis_labels(labels, x)]
    parts += [_line(line, x, y) for line in lines]
    return _svg(title, HEIGHT, parts)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of `interval_plot`: a share and its confidence interval, all from 0 to 1."""

    name: str
    share: float
    low: float
    high: float
    colour: int


def interval_plot(title: str, rows: Sequence[Interval]) -> str:
    """Shares with their intervals, one in each row, over the range that they cover."""
    left, step = 190, 30
    low = max(math.floor(min(row.low for row in rows) * 20) / 20, 0.0)
    high = min(math.ceil(max(row.high for row in rows) * 20) / 20, 1.0)
    height = TOP + step * len(rows) + 34
    floor = TOP + step * len(rows)

    def x(share: float) -> float:
        return left + (WIDTH - left - RIGHT - 20) * (share - low) / ((high - low) or 1.0)

    parts = []
    for index in range(5):
        share = low + (high - low) * index / 4
        parts.append(f'<line class="grid" x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{TOP}"')
        parts.append(f' y2="{floor}"/>')
        parts.append(_text(x(share), floor + 20, f"{share:.1%}", "middle"))
    for index, row in enumerate(rows):
        at, colour = TOP + step * (index + 0.5), f"var(--c{row.colour % COLOURS})"
        tip = f"{row.name}: {row.share:.1%} ({row.low:.1%} to {row.high:.1%})"
        parts.append(_text(left - 12, at + 4, row.name, "end"))
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><title>{escape(tip)}</title>'
            f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{at}" y2="{at}"'
            f' stroke-width="2.5"/><circle cx="{x(row.share):.1f}" cy="{at}" r="5"/></g>'
        )
    return _svg(title, height, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _grid(low: int, high: int, y: object) -> str:
    assert callable(y)
    every = max(math.ceil((high - low) / 6), 1)
    parts = []
    for power in range(low, high + 1, every):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}"')
        parts.append(f' y2="{at:.1f}"/>')
        label = f'10<tspan dy="-5" font-size="9">{power}</tspan>'
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(parts)


def _axis_labels(labels: Sequence[str], x: object) -> str:
    assert callable(x)
    every, floor = max(math.ceil(len(labels) / 14), 1), HEIGHT - BOTTOM + 18
    last = len(labels) - 1
    room = min(x(last), WIDTH - LETTER * len(labels[last])) - 2 * LETTER
    parts = [
        _text(x(index), floor, labels[index], "middle")
        for index in range(0, last, every)
        if x(index) < room
    ]
    middle = x(last) + LETTER * len(labels[last]) / 2 < WIDTH
    parts.append(
        _text(x(last) if middle else WIDTH, floor, labels[last], "middle" if middle else "end")
    )
    return "".join(parts)


def _line(line: Line, x: object, y: object) -> str:
    assert callable(x)
    assert callable(y)
    at = [(x(index), y(value)) for index, value in enumerate(line.values)]
    points = " ".join(f"{across:.1f},{down:.1f}" for across, down in at)
    colour = f"var(--c{line.colour % COLOURS})"
    dots = "".join(
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}">'
        f"<title>{escape(line.name)}: {value:.2e}</title></circle>"
        for (across, down), value in zip(at, line.values, strict=True)
        if line.style == "stream"
    )
    return (
        f'<polyline class="{line.style}" points="{points}" stroke="{colour}">'
        f"<title>{escape(line.name)}</title></polyline>{dots}"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
