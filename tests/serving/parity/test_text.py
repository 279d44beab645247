"""The parity report as text: what differs first, builds side by side, the verdict last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iblip.serving.parity.report import BuildReport, Check, Report, StageReport
from iblip.serving.parity.text import text_from_report

BLOCK = "language_model.model.layers.11"


def build(label, error=0.0, different=()):
    """A build's report with two stages."""
    blocks = StageReport(
        checks=(
            Check(name="own error of a block", where=BLOCK, value=error, limit=1e-5),
            Check(name="logits: max abs", value=0.25),
        ),
        fault=BLOCK if error > 1e-5 else "",
    )
    text = StageReport(
        checks=(Check(name="same text", value=1 - len(different) / 4, limit=0.95, sense="least"),),
        details={"different": list(different)},
    )
    stages = {"language_model": blocks, "text": text, "padding": StageReport(skipped="no batch")}
    return BuildReport(
        build=f"build/{label}", label=label, precision={"language_model": label}, stages=stages
    )


REPORT = Report(
    checkpoint="demo",
    model="demo",
    synthetic=False,
    reference={"kind": "whole", "reason": "it fits"},
    examples=4,
    builds=(build("fp32"),),
    created="2026-01-01T00:00:00+00:00",
    tools={},
)
BOTH = replace(REPORT, builds=(build("fp32"), build("int8", 0.5, ("a picture of a dog",))))


def test_the_last_line_is_the_verdict():
    passed = text_from_report(REPORT).splitlines()
    assert passed[-1] == "PASS: the build is within every limit"
    assert "Differences" not in passed
    failed = text_from_report(BOTH).splitlines()
    assert failed[-1].startswith("FAIL: build/int8 exceeds the thresholds of language_model, text;")
    assert failed[-1].endswith(f"leaves its band in {BLOCK}")


def test_differences_come_before_everything_else():
    lines = text_from_report(BOTH).splitlines()
    first, table = lines.index("Differences"), next(i for i, x in enumerate(lines) if "  fp32" in x)
    differences = "\n".join(lines[first + 1 : table + 3])
    assert f"own error of a block, {BLOCK}: 0.5  (at most 1e-5)" in differences
    assert "differs: a picture of a dog" in differences
    assert "same text: 0.75  (at least 0.95)" in differences


def test_several_builds_stand_side_by_side():
    lines = text_from_report(BOTH).splitlines()
    (row,) = [line for line in lines if line.startswith("    same text")]
    assert row.split()[-2:] == ["1", "!0.75"]
    (alone,) = [
        line for line in text_from_report(REPORT).splitlines() if line.startswith("    same text")
    ]
    assert alone.endswith("1  (at least 0.95)")


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("report", [REPORT, BOTH])
def test_the_table_fits_the_terminal(report, columns):
    text = text_from_report(report, columns)
    rows = [line for line in text.splitlines() if line.startswith("    ")]
    assert len(rows) >= 3
    assert max(map(len, rows)) <= columns
    limits = report is REPORT  # beside the values of a build that is alone
    assert ("…" in text) == (columns < (100 if limits else 80))
