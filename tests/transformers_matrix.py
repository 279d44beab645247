"""`make test-transformers`: the tests of `tests/with_transformers.txt` on other transformers.

One environment has the oldest transformers that `pyproject.toml` admits; one has the newest, with
the newest onnx, onnxruntime and tokenizers that go with it, pre-releases included. Prints a table
of what passed, as `docs/evidence.md` has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

from tests.pins import PINS

REPOSITORY = Path(__file__).parents[1]
LIST = REPOSITORY / "tests" / "with_transformers.txt"

SHOWN = ("transformers", "tokenizers", "huggingface_hub", "onnx", "onnxruntime")
"""Packages whose versions are in the table."""

FREE = ("transformers", "tokenizers", "huggingface_hub")
"""Packages that transformers chooses, in either environment; all others are pinned, except for…"""

NEWEST = ("onnx", "onnxruntime", "tokenizers")
"""…these, of which the environment of the newest transformers has the newest."""

TOOLS = (
    "hypothesis",
    "packaging",
    "peft",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "setuptools",
)


def _admitted() -> dict[str, Requirement]:
    """Returns what `pyproject.toml` requires of the packages above, by name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, (*extras["export"], *extras["cpu"]))
    return {one.name: one for one in requirements if one.name in {*FREE, *NEWEST}}


def _lowest(requirement: Requirement) -> str:
    """Returns the version behind a requirement's `>=`."""
    return next(part.version for part in requirement.specifier if part.operator == ">=")


def _oldest(admitted: Mapping[str, Requirement]) -> list[str]:
    return [f"transformers=={_lowest(admitted['transformers'])}"]


def _newest(admitted: Mapping[str, Requirement]) -> list[str]:
    # A bound that is a pre-release itself has pip take pre-releases of that package.
    early = [f"{name}>={_lowest(admitted[name])}.dev0" for name in NEWEST]
    return [str(admitted["transformers"]), *early]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment in which the tests run.

    Attributes:
        name: `oldest` or `newest`.
        requirements: of transformers and the packages that go with it.
        free: packages that `constraints.txt` does not pin there.
    """

    name: str
    requirements: Sequence[str]
    free: Sequence[str]

    @property
    def directory(self) -> Path:
        """Where it is."""
        return REPOSITORY / f".venv-transformers-{self.name}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    def install(self) -> None:
        """Makes it, or brings it up to date."""
        if not self.python.exists():
            venv.create(self.directory, symlinks=True, with_pip=True)
        constraints = self.directory / "constraints.txt"
        pins = [f"{name}=={version}" for name, version in PINS.items() if name not in self.free]
        constraints.write_text("\n".join(pins), encoding="utf-8")
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        torch = f"torch=={PINS['torch']}"
        if self._run([*pip, "--retries", "1", f"{torch}+cpu"], check=False):
            self._run([*pip, torch])  # perhaps the CUDA build of several GB
        wanted = ["--upgrade", *self.requirements, *TOOLS, "-e", ".[cpu]"]
        self._run([*pip, "-c", constraints, *wanted])

    def versions(self) -> dict[str, str]:
        """Returns the installed versions of `SHOWN`."""
        code = (
            "import json, sys; from importlib.metadata import version;"
            " print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        )
        command = [self.python, "-c", code, *SHOWN]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        versions: dict[str, str] = json.loads(found.stdout)
        return versions

    def test(self) -> ElementTree.Element:
        """Runs the tests, and returns pytest's counts: attributes of a `testsuite`."""
        results = self.directory / "results.xml"
        results.unlink(missing_ok=True)
        tests = LIST.read_text(encoding="utf-8").split()
        command = [self.python, "-m", "pytest", "-n", "0", "-q", f"--junitxml={results}", *tests]
        self._run(command, check=False)
        suite = ElementTree.parse(results).getroot().find("testsuite")
        assert suite is not None
        return suite

    def _run(self, command: Sequence[str | Path], *, check: bool = True) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, check=check, cwd=REPOSITORY, env=environment)
        return ran.returncode


def main() -> int:
    """Runs the tests in both environments; returns 1 if one of them failed in either."""
    admitted = _admitted()
    environments = (
        Environment(name="oldest", requirements=_oldest(admitted), free=FREE),
        Environment(name="newest", requirements=_newest(admitted), free=(*FREE, *NEWEST)),
    )
    rows, failed = [], 0
    for environment in environments:
        environment.install()
        suite = environment.test()
        count = {
            name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
        }
        wrong = count["failures"] + count["errors"]
        passed = count["tests"] - wrong - count["skipped"]
        failed += wrong
        cells = [environment.name, *environment.versions().values()]
        rows.append([*cells, *map(str, (passed, wrong, count["skipped"]))])
    header = ["", *SHOWN, "passed", "failed", "skipped"]
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
