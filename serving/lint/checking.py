"""Applies every rule to every model of a repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import PIP_SERVER, Model, Repository, Server, read_repository
from iblip.serving.lint.rule import Diagnostic, Rule, Severity
from iblip.serving.lint.rules import RULES
from iblip.serving.repository.model_config import check_configs_can_be_read


@dataclass(frozen=True, kw_only=True)
class Report:
    """The diagnostics for a repository.

    Attributes:
        repository: what was checked.
        diagnostics: sorted by file, then by line.
    """

    repository: Repository
    diagnostics: tuple[Diagnostic, ...]

    def count(self, severity: Severity) -> int:
        """The number of diagnostics of that severity."""
        return Counter(diagnostic.rule.severity for diagnostic in self.diagnostics)[severity]

    def passed(self, *, strict: bool = False) -> bool:
        """Whether there are no errors and, if `strict`, no warnings; notes never count."""
        failing = (Severity.ERROR, Severity.WARNING) if strict else (Severity.ERROR,)
        return not any(self.count(severity) for severity in failing)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "repository": str(self.repository.path),
            "models": list(self.repository.models),
            "server": self.repository.server.title,
            **{f"{severity}s": self.count(severity) for severity in Severity},
            "findings": [diagnostic.to_json() for diagnostic in self.diagnostics],
        }

    def __str__(self) -> str:
        counts = [(self.count(severity), severity) for severity in Severity]
        summary = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts)
        lines = [str(diagnostic) for diagnostic in self.diagnostics]
        return "\n".join([*lines, f"{len(self.repository.models)} models: {summary}"])


def lint(directory: Path, server: Server = PIP_SERVER) -> Report:
    """Checks a build directory, or any folder of Triton models.

    Args:
        directory: of the build, or of the models.
        server: the one that will run them.

    Raises:
        InputError: there is no such directory, it is a single model, or it has no models.
        BuildDirectoryError: it has a manifest that cannot be read.
        MissingPackageError: tritonclient, which knows Triton's configs, is not installed.
    """
    check_configs_can_be_read()
    repository = read_repository(directory, server)
    diagnostics = [
        diagnostic
        for model in repository.models.values()
        for rule in RULES.values()
        for diagnostic in _apply(rule, model, repository, directory)
    ]
    diagnostics.sort(
        key=lambda diagnostic: (diagnostic.model, diagnostic.path, diagnostic.line or 0)
    )
    return Report(repository=repository, diagnostics=tuple(diagnostics))


def _apply(
    rule: Rule, model: Model, repository: Repository, directory: Path
) -> Iterator[Diagnostic]:
    if model.config is None and not rule.without_config:
        return
    for fault in rule.check(model, repository):
        yield Diagnostic(
            rule=rule,
            model=model.name,
            path=_relative_path(fault, model, directory),
            line=fault.line,
            message=fault.message,
        )


def _relative_path(fault: Fault, model: Model, directory: Path) -> str:
    path = fault.path or model.config_path
    # A repository given by a relative path has its build by an absolute one.
    base = directory if path.is_relative_to(directory) else model.path.parent
    return path.relative_to(base).as_posix()
