"""The whole examination, and its report for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iblip.engines.hardware.containers import Container, find_container
from iblip.engines.hardware.findings import Finding, Verdict, worst
from iblip.serving.doctor.builds import BuildFindings, findings_of_build
from iblip.serving.doctor.checks import CHECKS
from iblip.serving.doctor.gpus import check_container_driver
from iblip.serving.doctor.machine import Machine, read_machine

WIDTH = 100

MARKS: dict[Verdict, str] = {"ok": " ", "note": "·", "warning": "!", "problem": "x"}
"""The mark before a finding."""

REPEATED: dict[Verdict, str] = {"warning": "Warnings", "problem": "Problems"}
"""Verdicts whose findings are repeated at the end, the worst last."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings.

    Attributes:
        machine: findings of this machine.
        builds: findings of each build.
        container: the one asked about; `None` if there was none.
        driver: whether this machine's driver runs that container.
    """

    machine: tuple[Finding, ...]
    builds: tuple[BuildFindings, ...] = ()
    container: Container | None = None
    driver: Finding | None = None

    @property
    def sections(self) -> Iterator[tuple[str, tuple[Finding, ...]]]:
        """Each heading with its findings."""
        yield "This machine", self.machine
        if self.container is not None and self.driver is not None:
            yield self.container.image, (self.driver,)
        for build in self.builds:
            title = f"{build.directory}" + (f" ({build.name})" if build.name else "")
            where = "" if self.container is None else ", outside the container"
            yield title + where, build.here
            if self.container is not None and build.there:
                yield f"{title}, in {self.container.tag}", build.there

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings."""
        return worst(finding for _, findings in self.sections for finding in findings)

    def to_json(self) -> dict[str, Any]:
        """Every finding, JSON-ready."""
        return {
            "verdict": self.verdict,
            "machine": _to_json(self.machine),
            "container": None if self.container is None else self.container.to_json(),
            "driver": None if self.driver is None else self.driver.to_json(),
            "builds": [
                {
                    "directory": str(build.directory),
                    "name": build.name,
                    "here": _to_json(build.here),
                    "container": _to_json(build.there),
                }
                for build in self.builds
            ],
        }


def examine(
    builds: Sequence[Path] = (), container: str | None = None, machine: Machine | None = None
) -> Report:
    """Examines this machine, a container, and builds.

    Args:
        builds: their directories.
        container: a tag of `engines.hardware.containers.CONTAINERS`.
        machine: the facts to judge; `None` reads those of this machine now.

    Raises:
        OptionError: the container is not a known one.
    """
    named = None if container is None else find_container(container)
    machine = machine or read_machine()
    return Report(
        machine=tuple(finding for check in CHECKS for finding in check(machine)),
        builds=tuple(findings_of_build(build, machine, named) for build in builds),
        container=named,
        driver=None if named is None else check_container_driver(named, machine),
    )


def text_from_report(report: Report) -> str:
    """The report for people: all findings, then warnings and problems again, with what to do."""
    lines: list[str] = []
    for heading, findings in report.sections:
        lines += [heading, *_section_lines(findings), ""]
    counts = []
    for verdict, title in REPEATED.items():
        repeated = [
            (heading, [finding for finding in findings if finding.verdict == verdict])
            for heading, findings in report.sections
        ]
        counts.append(sum(len(findings) for _, findings in repeated))
        if counts[-1]:
            lines += [title, *(line for pair in repeated for line in _grouped_lines(*pair)), ""]
    warnings, problems = counts
    lines.append(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return "\n".join(lines)


def _section_lines(findings: Iterable[Finding]) -> Iterator[str]:
    findings = tuple(findings)
    width = max((len(finding.title) for finding in findings), default=0)
    for finding in findings:
        head = f"{MARKS[finding.verdict]} {finding.title:{width}}  "
        yield _wrap(finding.found, head)
        if finding.verdict == "note":
            expected = f"Expected: {finding.wanted}." if finding.wanted else ""
            advice = f"{expected} {finding.remedy or ''}".strip()
            if advice:
                yield _wrap(advice, " " * len(head))


def _grouped_lines(heading: str, findings: Iterable[Finding]) -> Iterator[str]:
    """Findings that differ in their title alone share their lines."""
    titles_of: dict[Finding, list[str]] = {}
    for finding in findings:
        titles_of.setdefault(replace(finding, title=""), []).append(finding.title)
    for finding, titles in titles_of.items():
        mark = f"{MARKS[finding.verdict]} "
        yield _wrap(f"{', '.join(titles)} of {heading}: {finding.found}", mark)
        yield _wrap(f"expected: {finding.wanted}", "    ")
        yield _wrap(f"{finding.remedy}", "    ")


def _wrap(text: str, head: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, name: str) -> str:
    return f"{number or 'no'} {name}{'' if number == 1 else 's'}"


def _to_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding.to_json() for finding in findings]
