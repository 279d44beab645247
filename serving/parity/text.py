"""The parity report as text for a terminal: what differs first, a column a build, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.serving.parity.report import WORDS, BuildReport, Check, Report, StageReport, number
from iblip.serving.parity.stages import STAGES

COLUMN = 12
"""Characters of a build's column."""

NAME = 68
"""Characters of a check's name, where there is room for it."""


def text_from_report(report: Report, columns: int | None = None) -> str:
    """The report for people. Numbers without a limit have no verdict.

    Args:
        report: of one build or several, which stand side by side.
        columns: characters of a line; longer names are cut. `None` cuts none.
    """
    lines = [MEANS_NOTHING] if report.synthetic else []
    lines.append("transformers: {kind} ({reason})".format(**report.reference))
    for build in report.builds:
        lines.append(f"{build.build}: {build.label}  {WORDS[bool(build)]}")
        if build.elsewhere:
            lines.append(f"  {build.elsewhere}")
    differences = [line for build in report.builds for line in _differences(build)]
    if differences:
        lines += ["", "Differences", *differences]
    return "\n".join([*lines, "", *_table(report.builds, columns), "", report.verdict])


def _differences(build: BuildReport) -> Iterator[str]:
    """What leaves its limits, where the error begins, and which texts differ."""
    for name, stage in build.stages.items():
        title = f"  {build.label}: {STAGES[name].title}"
        for check in stage.checks:
            if not check:
                yield f"{title}: {_name(check)}: {number(check.value)}{_limit(check)}"
        for case in stage.details.get("different", ()):
            yield f"{title}: differs: {case}"
    if build.first_out:
        yield f"  {build.label}: the error leaves its band in {build.first_out}"


def _table(builds: Sequence[BuildReport], columns: int | None) -> Iterator[str]:
    """Every stage and every check, with a column a build; a build alone has its limits there."""
    alone = len(builds) == 1
    beside = COLUMN + 22 if alone else COLUMN * len(builds)
    width = NAME if columns is None else max(20, min(NAME, columns - beside - 4))
    if not alone:
        yield " " * (width + 4) + "".join(_cell(build.label) for build in builds)
    for name in dict.fromkeys(name for build in builds for name in build.stages):
        stages = [build.stages.get(name) for build in builds]
        if alone:
            yield f"  {STAGES[name].title}  {_word(stages[0])}"
        else:
            title = _cut(STAGES[name].title, width + 2)
            words = (_word(stage).partition(":")[0] for stage in stages)
            yield f"  {title:{width + 2}}" + "".join(map(_cell, words))
        yield from _rows(stages, width)


def _word(stage: StageReport | None) -> str:
    if stage is None:
        return ""
    return f"{WORDS[None]}: {stage.skipped}" if stage.skipped else WORDS[bool(stage)]


def _rows(stages: Sequence[StageReport | None], width: int) -> Iterator[str]:
    """The checks of a stage, each with the place where the first build has it."""
    checks = [
        {check.name: check for check in (stage.checks if stage is not None else ())}
        for stage in stages
    ]
    for name in dict.fromkeys(name for of_build in checks for name in of_build):
        found = [of_build.get(name) for of_build in checks]
        title = _cut(_name(next(check for check in found if check is not None)), width)
        values = ["" if check is None else number(check.value) for check in found]
        marks = ["" if check is None or check else "!" for check in found]
        cells = "".join(map(_cell, map("".join, zip(marks, values, strict=True))))
        limit = _limit(found[0]) if len(found) == 1 and found[0] is not None else ""
        yield f"    {title:{width}}{cells}{limit}".rstrip()


def _name(check: Check) -> str:
    return check.name + (f", {check.where}" if check.where else "")


def _limit(check: Check) -> str:
    if check.limit is None:
        return ""
    word = "at most" if check.sense == "most" else "at least"
    return f"  ({word} {number(check.limit)})"


def _cell(text: str) -> str:
    return f"{_cut(text, COLUMN - 2):>{COLUMN}}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
