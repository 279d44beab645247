"""The whole examination, and how it is told."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iblip.engines.hardware.containers import Container, find_container
from iblip.engines.hardware.findings import Finding, Verdict, worst
from iblip.serving.doctor.builds import BuildFindings, findings_of_build
from iblip.serving.doctor.checks import CHECKS, container_driver
from iblip.serving.doctor.machine import Machine, look

WIDTH = 100

MARKS: dict[Verdict, str] = {"ok": " ", "note": "·", "warning": "!", "problem": "x"}
"""What stands before a finding."""

AMISS: dict[Verdict, str] = {"warning": "Warnings", "problem": "Problems"}
"""What is told once more at the end, the worst last."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        machine: of this machine.
        builds: of each build.
        container: that was named; `None` of none.
        driver: whether this machine's driver runs it.
    """

    machine: tuple[Finding, ...]
    builds: tuple[BuildFindings, ...] = ()
    container: Container | None = None
    driver: Finding | None = None

    @property
    def sections(self) -> Iterator[tuple[str, tuple[Finding, ...]]]:
        """Headings, and the findings under each."""
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
        """The worst of all."""
        return worst(finding for _, findings in self.sections for finding in findings)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with every finding."""
        return {
            "verdict": self.verdict,
            "machine": _listed(self.machine),
            "container": None if self.container is None else self.container.to_json(),
            "driver": None if self.driver is None else self.driver.to_json(),
            "builds": [
                {
                    "directory": str(build.directory),
                    "name": build.name,
                    "here": _listed(build.here),
                    "container": _listed(build.there),
                }
                for build in self.builds
            ],
        }


def examine(
    builds: Sequence[Path] = (), container: str | None = None, machine: Machine | None = None
) -> Report:
    """Looks at this machine, at a container, and at builds.

    Args:
        builds: their directories.
        container: a tag of `engines.hardware.containers.CONTAINERS`.
        machine: what is looked at; `None` is this machine, now.

    Raises:
        OptionError: what is in the container is not known.
    """
    named = None if container is None else find_container(container)
    machine = machine or look()
    return Report(
        machine=tuple(finding for check in CHECKS for finding in check(machine)),
        builds=tuple(findings_of_build(build, machine, named) for build in builds),
        container=named,
        driver=None if named is None else container_driver(named, machine),
    )


def text_of(report: Report) -> str:
    """The report for people: what is well first, what is not last, with what to do."""
    lines: list[str] = []
    for heading, findings in report.sections:
        lines += [heading, *_section(findings), ""]
    counts = []
    for verdict, title in AMISS.items():
        told = [
            (heading, [one for one in findings if one.verdict == verdict])
            for heading, findings in report.sections
        ]
        counts.append(sum(len(findings) for _, findings in told))
        if counts[-1]:
            lines += [title, *(line for pair in told for line in _amiss(*pair)), ""]
    warnings, problems = counts
    lines.append(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return "\n".join(lines)


def _section(findings: Iterable[Finding]) -> Iterator[str]:
    findings = tuple(findings)
    width = max((len(one.title) for one in findings), default=0)
    for one in findings:
        head = f"{MARKS[one.verdict]} {one.title:{width}}  "
        yield _wrapped(one.found, head)
        if one.verdict == "note":
            more = [f"It wants {one.wanted}." if one.wanted else "", one.remedy or ""]
            if any(more):
                yield _wrapped(" ".join(more).strip(), " " * len(head))


def _amiss(heading: str, findings: Iterable[Finding]) -> Iterator[str]:
    """Several that say the same are told once."""
    alike: dict[Finding, list[str]] = {}
    for one in findings:
        alike.setdefault(replace(one, title=""), []).append(one.title)
    for one, titles in alike.items():
        yield _wrapped(f"{', '.join(titles)} of {heading}: {one.found}", f"{MARKS[one.verdict]} ")
        yield _wrapped(f"wanted: {one.wanted}", "    ")
        yield _wrapped(f"{one.remedy}", "    ")


def _wrapped(text: str, head: str) -> str:
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


def _listed(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding.to_json() for finding in findings]
