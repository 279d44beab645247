"""The parity report as text for a terminal: a line for each check, build after build."""

from __future__ import annotations

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.serving.parity.report import Check, Report, StageReport, number
from iblip.serving.parity.stages import STAGES

VERDICTS = {True: "ok", False: "FAILED"}


def text_from_report(report: Report) -> str:
    """The report for people. Numbers without a limit have no verdict."""
    lines = [MEANS_NOTHING] if report.synthetic else []
    lines.append("transformers: {kind} ({reason})".format(**report.reference))
    for build in report.builds:
        lines += ["", f"{build.build}: {build.label}  {VERDICTS[bool(build)]}"]
        if build.elsewhere:
            lines.append(f"  {build.elsewhere}")
        for name, stage in build.stages.items():
            lines += _stage_lines(STAGES[name].title, stage)
        if build.first_out:
            lines.append(f"  the error leaves its band in {build.first_out}")
    return "\n".join(lines).strip()


def _stage_lines(title: str, stage: StageReport) -> list[str]:
    if stage.skipped:
        return [f"  {title}: skipped, {stage.skipped}"]
    lines = [f"  {title}  {VERDICTS[bool(stage)]}"]
    lines += [_check_line(check) for check in stage.checks]
    return lines + [f"      differs: {case}" for case in stage.details.get("different", ())]


def _check_line(check: Check) -> str:
    limit = ""
    if check.limit is not None:
        word = "at most" if check.sense == "most" else "at least"
        limit = f"  ({word} {number(check.limit)})"
    verdict = "" if check else "  FAILED"
    where = f", {check.where}" if check.where else ""
    return f"    {check.name + where:68} {number(check.value):>10}{limit}{verdict}"
