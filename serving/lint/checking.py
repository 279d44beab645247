"""Asks every rule about every model of a repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import PIP_SERVER, Model, Repository, Server, read_repository
from iblip.serving.lint.rule import Finding, Rule, Severity
from iblip.serving.lint.rules import RULES


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a repository.

    Attributes:
        repository: what was read.
        findings: by file, then by line.
    """

    repository: Repository
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """How many findings are of that severity."""
        return Counter(finding.rule.severity for finding in self.findings)[severity]

    def passed(self, *, strict: bool = False) -> bool:
        """Whether there are no errors, and (strictly) no warnings either. Notes are none."""
        bad = (Severity.ERROR, Severity.WARNING) if strict else (Severity.ERROR,)
        return not any(self.count(severity) for severity in bad)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "repository": str(self.repository.path),
            "models": list(self.repository.models),
            "server": self.repository.server.title,
            **{f"{severity}s": self.count(severity) for severity in Severity},
            "findings": [finding.to_json() for finding in self.findings],
        }

    def __str__(self) -> str:
        counts = [(self.count(severity), severity) for severity in Severity]
        told = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts)
        lines = [str(finding) for finding in self.findings]
        return "\n".join([*lines, f"{len(self.repository.models)} models: {told}"])


def lint(directory: Path, server: Server = PIP_SERVER) -> Report:
    """Checks a build directory, or any folder of Triton models.

    Args:
        directory: of the build, or of the models.
        server: that is to run them.

    Raises:
        InputError: there is no such directory, it is one model, or it has none.
        BuildDirectoryError: it has a manifest that cannot be read.
    """
    repository = read_repository(directory, server)
    found = [
        finding
        for model in repository.models.values()
        for rule in RULES.values()
        for finding in _findings(rule, model, repository, directory)
    ]
    found.sort(key=lambda one: (one.model, one.path, one.line or 0))
    return Report(repository=repository, findings=tuple(found))


def _findings(
    rule: Rule, model: Model, repository: Repository, directory: Path
) -> Iterator[Finding]:
    if model.config is None and not rule.anyway:
        return
    for fault in rule.check(model, repository):
        yield Finding(
            rule=rule,
            model=model.name,
            path=_shown(fault, model, directory),
            line=fault.line,
            message=fault.message,
        )


def _shown(fault: Fault, model: Model, directory: Path) -> str:
    path = fault.path or model.config_path
    # Of a repository that is named by its own, relative path its build is found by an absolute one.
    base = directory if path.is_relative_to(directory) else model.path.parent
    return path.relative_to(base).as_posix()
