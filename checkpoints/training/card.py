"""Puts measured figures into a checkpoint's README, between its two markers."""

from __future__ import annotations

from pathlib import Path

from .evaluation import Evaluation, evaluate

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def figures(full: Evaluation, empty: Evaluation) -> str:
    """The table a kind a row: exact match with the instruction, and with an empty one."""
    lines = [
        "| kind | asked | exact match | Q-Former given an empty instruction |",
        "|---|--:|--:|--:|",
    ]
    for kind, (right, asked) in full.kinds.items():
        lines.append(
            f"| {kind} | {asked} | {right / asked:.1%} | {empty.kinds[kind][0] / asked:.1%} |"
        )
    everything = f"{full.right / full.asked:.1%} | {empty.right / empty.asked:.1%}"
    return "\n".join([*lines, f"| **all** | {full.asked} | {everything} |"])


def write_card(directory: Path) -> str:
    """Evaluate a checkpoint twice and write the figures into its README; returns the table.

    Raises:
        ValueError: the README lacks the markers.
    """
    readme = directory / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}; put them where figures belong")
    table = figures(evaluate(directory), evaluate(directory, empty_instruction=True))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return table
