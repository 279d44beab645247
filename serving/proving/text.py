"""Lines of a record, for people, as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iblip.serving.parity.report import number
from iblip.serving.proving.record import Record
from iblip.serving.proving.stages import STAGES


def line_of(line: Mapping[str, Any]) -> str:
    """One line of a record as one line of text."""
    if "verdict" in line:
        return f"{line['verdict'].upper()} in {line['seconds']:.0f} s. {line['reason']}"
    if "format" in line:
        return head_of(line)
    if "ended" in line:
        reason = f": {line['reason']}" if line["reason"] else ""
        return f"  {line['stage']:10}  {line['ended']}{reason}  ({line['seconds']:.1f} s)"
    return f"  {line['stage']:10}  {_fact(line)}"


def head_of(head: Mapping[str, Any]) -> str:
    """What is proven, and where."""
    engines = " and ".join(dict.fromkeys(head["engines"].values()))
    words = ", ".join(dict.fromkeys(head["precision"].values()))
    gpu = head["gpu"]
    where = f"{gpu['name']} ({gpu['capability']}, driver {head['driver']})" if gpu else "the CPU"
    stubs = " STUBS: nothing is computed, and no number means anything." if head["stubs"] else ""
    return f"{head['build']} in {words} by {engines} on {where}.{stubs}"


def _fact(line: Mapping[str, Any]) -> str:
    value = line["value"]
    shown = value if isinstance(value, str) else shown_number(value)
    where = f" [{line['where']}]" if line.get("where") else ""
    limit = ""
    if "limit" in line:
        word = "at most" if line["sense"] == "most" else "at least"
        limit = f" ({word} {shown_number(line['limit'])})"
    verdict = {True: "  ok", False: "  FAILED", None: ""}[line["passed"]]
    return f"{line['name']}: {shown}{limit}{where}{verdict}"


def shown_number(value: float) -> str:
    """A number for people: counts in full, others with four significant figures."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    # A cosine near 1 tells by its distance from it.
    return f"{value:.7f}" if 0.99 < value < 1 else number(value)


def stages_of(record: Record) -> list[str]:
    """One line for each stage, for `inspect`."""
    return [
        f"  {name:10}  {stage['ended'] or 'cut short'}"
        + (f": {stage['reason']}" if stage["reason"] else "")
        for name, stage in record.stages.items()
        if name in STAGES
    ]
