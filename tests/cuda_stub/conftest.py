"""Builds for the CUDA provider, made by the project's own environment and run over the stubs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cuda_stub.building import CUDNN, NO_COMPILER, find_compiler

if TYPE_CHECKING:
    from iblip.engines.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[2]

BUILDS = REPOSITORY / ".cache" / "cuda_stub" / "builds"
"""Builds outlast a run, as traces do: a build whose code has not changed is made only once."""

PYTHON = "IBLIP_BUILD_PYTHON"
"""Environment variable of the Python that makes builds: torch is not in the stubs' environment."""


@pytest.fixture(scope="session", autouse=True)
def stubs() -> Path:
    """The folder of the stub libraries, which the process has in its `LD_LIBRARY_PATH`."""
    if find_compiler() is None:
        pytest.skip(NO_COMPILER)
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    found = next((folder for folder in folders if (folder / CUDNN).is_dir()), None)
    assert found, "LD_LIBRARY_PATH has no stubs: run `make test-cuda-stub`"
    return found


@pytest.fixture(scope="session")
def cuda_build(stubs: Path) -> Iterator[Callable[[str, str], Path]]:
    """`cuda_build("minigpt4-demo", "bf16")`: a build of which everything runs on CUDA."""
    environment = dict(os.environ, IBLIP_CACHE=str(REPOSITORY / ".cache"))
    environment["PYTHONPATH"] = str(REPOSITORY)
    del environment["LD_LIBRARY_PATH"]
    BUILDS.mkdir(parents=True, exist_ok=True)
    command = [os.environ[PYTHON], "-m", "tests.cuda_stub.builds", str(BUILDS)]
    known: dict[tuple[str, str], str] = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True
    ) as maker:

        def make(demo: str, precision: str) -> Path:
            if (demo, precision) not in known:
                assert maker.stdin
                assert maker.stdout
                print(demo, precision, file=maker.stdin, flush=True)
                known[demo, precision] = maker.stdout.readline().strip()
            answer = known[demo, precision]
            assert answer, "no build was made: see standard error"
            assert not answer.startswith("failed"), answer
            return Path(answer)

        yield make
        assert maker.stdin
        maker.stdin.close()


@pytest.fixture
def opened(cuda_build: Callable[[str, str], Path]) -> Iterator[Callable[..., Pipeline]]:
    """`opened("minigpt4-demo")`: a pipeline of its fp16 build, closed after the test."""
    from contextlib import ExitStack

    from iblip.engines.pipeline import Pipeline

    with ExitStack() as stack:
        yield lambda demo, precision="fp16": stack.enter_context(
            Pipeline(cuda_build(demo, precision))
        )


COUNTED = pytest.StashKey[list[str]]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record("a decode step", launches=(61, 64))` adds a row to the table of a run: counted, most.

    A number alone has no bound.
    """
    rows = request.config.stash.setdefault(COUNTED, [])

    def add(what: str, **counts: float | tuple[float, float]) -> None:
        words = [
            f"{name} {value[0]:g} (at most {value[1]:g})"
            if isinstance(value, tuple)
            else f"{name} {value:g}"
            for name, value in counts.items()
        ]
        rows.append(f"{what:<64} {', '.join(words)}")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was counted beside the bounds of `bounds.py`."""
    rows = terminalreporter.config.stash.get(COUNTED, [])
    if rows:
        terminalreporter.section("counted over the stubs")
        terminalreporter.write_line("\n".join(rows))


@pytest.fixture(scope="session")
def in_process_of_its_own(stubs: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`in_process_of_its_own(code, *arguments, cudnn=False)` runs Python over the stubs.

    Settings of the stubs are given by name: `fail_after=100`.
    """

    def run(
        code: str, *arguments: object, cudnn: bool = True, **settings: int
    ) -> subprocess.CompletedProcess[str]:
        environment = {f"CUDA_STUB_{name.upper()}": str(value) for name, value in settings.items()}
        environment["LD_LIBRARY_PATH"] = f"{stubs}:{stubs / CUDNN}" if cudnn else str(stubs)
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
