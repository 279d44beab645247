"""Checks of Python, of this project's extras, and of what is installed but does not load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iblip.engines.hardware.compatibility import numbers
from iblip.engines.hardware.findings import Finding
from iblip.export.system.installing import install_command
from iblip.serving.doctor.machine import Machine

PYTHONS = ((3, 11), (3, 14))
"""The oldest version of Python, and the first that is too new, as `pyproject.toml` has it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something this project does, and the packages it takes.

    Attributes:
        title: of the finding.
        purpose: in words.
        extras: names of this project's extras, any of which is enough; `""` is its own packages.
    """

    title: str
    purpose: str
    extras: tuple[str, ...]


JOBS = (
    Job(title="client", purpose="to ask a server", extras=("",)),
    Job(title="export", purpose="to build and verify", extras=("export",)),
    Job(title="ONNX Runtime", purpose="to run engines", extras=("cpu", "gpu")),
    Job(title="OpenVINO", purpose="to run engines on it", extras=("openvino",)),
    Job(title="TensorRT-RTX", purpose="to build its plans", extras=("tensorrt-rtx",)),
    Job(title="server", purpose="to serve without a container", extras=("server",)),
    Job(title="gateway", purpose="to answer OpenAI's API", extras=("gateway",)),
)
"""Each gives one finding."""


def check_python(machine: Machine) -> Iterator[Finding]:
    """Checks Python's version."""
    oldest, limit = (".".join(map(str, version)) for version in PYTHONS)
    if PYTHONS[0] <= numbers(machine.python)[:2] < PYTHONS[1]:
        yield Finding(title="Python", verdict="ok", found=machine.python)
        return
    yield Finding(
        title="Python",
        verdict="problem",
        found=machine.python,
        wanted=f"{oldest} or newer, and older than {limit}",
        remedy=f"Create the environment with such a Python: `make setup PYTHON=python{oldest}`.",
    )


def check_jobs(machine: Machine) -> Iterator[Finding]:
    """Checks the packages for each task."""
    if not machine.requirements:
        yield Finding(
            title="packages",
            verdict="note",
            found="this project is not installed, but imported from its folder",
            remedy="Install it with `pip install -e .` to have its requirements checked.",
        )
        return
    for job in JOBS:
        yield min(
            (_check_extra(machine, job, extra) for extra in job.extras),
            key=lambda finding: (finding.verdict != "ok", finding.verdict == "note"),
        )


def _check_extra(machine: Machine, job: Job, extra: str) -> Finding:
    required = machine.requirements.get(extra, ())
    missing = [package.name for package in required if package.name not in machine.packages]
    versions = machine.packages
    unfit = [
        package
        for package in required
        if package.name in versions and not package.allows(versions[package.name])
    ]
    install = f"`{install_command(extra)}`"
    if missing:
        essential = not extra  # without these not even the client runs
        return Finding(
            title=job.title,
            verdict="problem" if essential else "note",
            found=f"{', '.join(missing)} missing, {job.purpose}",
            wanted=", ".join(map(str, required)) if essential else None,
            remedy=f"{install} installs {'it' if len(missing) == 1 else 'them'}.",
        )
    if unfit:
        return Finding(
            title=job.title,
            verdict="warning",
            found=", ".join(f"{package.name} {versions[package.name]}" for package in unfit),
            wanted=f"{', '.join(map(str, unfit))}, {job.purpose}",
            remedy=f"{install} installs versions that fit; constraints.txt has the tested ones.",
        )
    text = ", ".join(f"{package.name} {versions[package.name]}" for package in required)
    return Finding(title=job.title, verdict="ok", found=text)


def check_torch(machine: Machine) -> Iterator[Finding]:
    """Which build of torch is installed."""
    version = machine.packages.get("torch")
    if version is not None:
        cuda = f"for CUDA {machine.torch_cuda}" if machine.torch_cuda else "for CPUs"
        yield Finding(title="torch", verdict="ok", found=f"{version}, {cuda}")


def check_loading(machine: Machine) -> Iterator[Finding]:
    """Packages that are installed but do not load."""
    for package, fault in machine.faults.items():
        version = machine.packages.get(package, "")
        optional = package == "torchvision"
        yield Finding(
            title=package,
            verdict="problem",
            found=f"{version} does not load: {fault}",
            wanted="a version that fits torch, or none: transformers' InstructBLIP does not load "
            "with this one"
            if optional
            else "a package that loads",
            remedy="`pip uninstall torchvision`: nothing here needs it."
            if optional
            else f"`pip install --force-reinstall {package}`.",
        )
