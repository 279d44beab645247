"""Puts measured figures into a checkpoint's README, between its two markers."""

from __future__ import annotations

from pathlib import Path

from .answering import reads_instruction
from .evaluation import Evaluation, evaluate

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def figures(full: Evaluation, empty: Evaluation | None = None) -> str:
    """The table a kind a row: exact match and, where given, that with an empty instruction."""
    lines = ["| kind | asked | exact match |", "|---|--:|--:|"]
    for kind, (right, asked) in full.kinds.items():
        lines.append(f"| {kind} | {asked} | {right / asked:.1%} |")
    lines.append(f"| **all** | {full.asked} | {full.right / full.asked:.1%} |")
    if empty is None:
        return "\n".join(lines)
    shares = [right / asked for right, asked in empty.kinds.values()]
    beside = [f" {share:.1%} |" for share in [*shares, empty.right / empty.asked]]
    beside = [" Q-Former given an empty instruction |", "--:|", *beside]
    return "\n".join(line + more for line, more in zip(lines, beside, strict=True))


def write_card(directory: Path) -> str:
    """Evaluate a checkpoint and write the figures into its README; returns the table.

    A checkpoint whose Q-Former reads the instruction is evaluated a second time, with an empty one.

    Raises:
        ValueError: the README lacks the markers.
    """
    readme = directory / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}; put them where figures belong")
    reads = reads_instruction(directory)
    empty = evaluate(directory, empty_instruction=True) if reads else None
    table = figures(evaluate(directory), empty)
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return table
