"""The parity report for a terminal: differences first, then every check, the verdict last."""

from __future__ import annotations

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.serving.parity.report import WORDS, BuildReport, Check, Report, StageReport, number
from iblip.serving.parity.stages import STAGES


def text_from_report(report: Report) -> str:
    """The report for people. Numbers without a limit have no verdict."""
    lines = [MEANS_NOTHING] if report.synthetic else []
    lines.append("transformers: {kind} ({reason})".format(**report.reference))
    for build in report.builds:
        lines += ["", f"{build.build}: {build.label}  {_word(build)}"]
        if build.elsewhere:
            lines.append(f"  {build.elsewhere}")
        if build.first_out:
            lines.append(f"  the error leaves its band in {build.first_out}")
        for name, stage in sorted(build.stages.items(), key=lambda item: bool(item[1])):
            lines += _stage_lines(STAGES[name].title, stage)
    return "\n".join([*lines, "", report.verdict]).strip()


def _word(result: Check | StageReport | BuildReport) -> str:
    """`pass`, or `FAIL`, which is easy to find."""
    return WORDS[True] if result else WORDS[False].upper()


def _stage_lines(title: str, stage: StageReport) -> list[str]:
    if stage.skipped:
        return [f"  {title}  {WORDS[None]}: {stage.skipped}"]
    lines = [f"  {title}  {_word(stage)}"]
    lines += [_check_line(check) for check in stage.checks]
    return lines + [f"      differs: {case}" for case in stage.details.get("different", ())]


def _check_line(check: Check) -> str:
    limit = ""
    if check.limit is not None:
        word = "at most" if check.sense == "most" else "at least"
        limit = f"  ({word} {number(check.limit)})"
    verdict = "" if check else f"  {_word(check)}"
    where = f", {check.where}" if check.where else ""
    return f"    {check.name + where:68} {number(check.value):>10}{limit}{verdict}"
