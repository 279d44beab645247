"""The table of checks of a machine. Each is given facts, and says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from iblip.engines.hardware.compatibility import numbers
from iblip.engines.hardware.containers import LEAST_CAPABILITY, LEAST_DRIVERS, Container
from iblip.engines.hardware.findings import Finding, Verdict
from iblip.engines.onnxruntime.providers import PROVIDERS
from iblip.serving.doctor.machine import PORTS, Machine
from iblip.serving.server.memory import gib

PYTHONS = ((3, 11), (3, 14))
"""The least version of Python, and the first that is too new, as `pyproject.toml` has it."""

WHEEL_GLIBC = (2, 35)
"""What the server of `nvidia-pytriton` is linked to."""

BUILD_MEMORY = 1 << 30
"""Bytes of memory that a build wants: 865 MiB at most for 7 B (docs/evidence.md)."""

BUILD_DISK = 10 << 30
"""Bytes that the largest build writes so far: 9.4 GB for 7 B in int4 (docs/evidence.md)."""

LEAST_DISK = 1 << 30
"""Bytes below which even a small build, or the log of a server, may find no room."""

SHARED_MEMORY = 256 << 20
"""Bytes of `/dev/shm` for a server of small models; Docker gives 64 MiB unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What this project does, and what it takes.

    Attributes:
        title: of the finding.
        purpose: in words.
        extras: names of this project's extras, any of which will do; `""` is none.
    """

    title: str
    purpose: str
    extras: tuple[str, ...]


JOBS = (
    Job(title="client", purpose="to ask a server", extras=("",)),
    Job(title="export", purpose="to build and verify", extras=("export",)),
    Job(title="ONNX Runtime", purpose="to run engines", extras=("cpu", "gpu")),
    Job(title="TensorRT-RTX", purpose="to build its plans", extras=("tensorrt-rtx",)),
    Job(title="server", purpose="to serve without a container", extras=("server",)),
)
"""Each is one finding."""

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Packages that provide the module `onnxruntime`, each writing over the others' files."""


def python(machine: Machine) -> Iterator[Finding]:
    """Its version."""
    least, limit = (".".join(map(str, version)) for version in PYTHONS)
    if PYTHONS[0] <= numbers(machine.python)[:2] < PYTHONS[1]:
        yield Finding(title="Python", verdict="ok", found=machine.python)
        return
    yield Finding(
        title="Python",
        verdict="problem",
        found=machine.python,
        wanted=f"{least} or newer, and older than {limit}",
        remedy=f"Make the environment with such a Python: `make setup PYTHON=python{least}`.",
    )


def jobs(machine: Machine) -> Iterator[Finding]:
    """The packages of each job."""
    if not machine.requirements:
        yield Finding(
            title="packages",
            verdict="note",
            found="this project is not installed, but read from its folder",
            remedy="`pip install -e .` in it lets its own requirements be checked.",
        )
        return
    for job in JOBS:
        yield min(
            (_extra(machine, job, extra) for extra in job.extras),
            key=lambda finding: (finding.verdict != "ok", finding.verdict == "note"),
        )


def _extra(machine: Machine, job: Job, extra: str) -> Finding:
    needed = machine.requirements.get(extra, ())
    missing = [one.name for one in needed if one.name not in machine.packages]
    unfit = [
        one
        for one in needed
        if one.name in machine.packages and not one.allows(machine.packages[one.name])
    ]
    install = f"`pip install '{'iblip' + (f'[{extra}]' if extra else '')}'`"
    if missing:
        essential = not extra  # without these not even the client runs
        return Finding(
            title=job.title,
            verdict="problem" if essential else "note",
            found=f"{', '.join(missing)} missing, {job.purpose}",
            wanted=", ".join(map(str, needed)) if essential else None,
            remedy=f"{install} brings {'it' if len(missing) == 1 else 'them'}.",
        )
    if unfit:
        return Finding(
            title=job.title,
            verdict="warning",
            found=", ".join(f"{one.name} {machine.packages[one.name]}" for one in unfit),
            wanted=f"{', '.join(map(str, unfit))}, {job.purpose}",
            remedy=f"{install} brings some that fit; constraints.txt has those that are tested.",
        )
    versions = ", ".join(f"{one.name} {machine.packages[one.name]}" for one in needed)
    return Finding(title=job.title, verdict="ok", found=versions)


def driver(machine: Machine) -> Iterator[Finding]:
    """The NVIDIA driver and its GPUs."""
    title, found = "NVIDIA driver", machine.driver
    if found is None:
        yield Finding(
            title=title,
            verdict="note",
            found="none: engines run on the CPU",
            remedy="Builds for a GPU can be made here all the same; they run where one is.",
        )
        return
    version = f"{found.version or 'of unknown version'}, for CUDA {found.cuda} and older"
    if found.fault is not None:
        yield Finding(
            title=title,
            verdict="problem",
            found=f"{version}; {found.fault}",
            wanted="a driver that starts",
            remedy="Load its kernel modules (`sudo modprobe nvidia`), or restart after it has been "
            "updated; in a container, give it the GPUs (`--gpus all`).",
        )
        return
    yield Finding(title=title, verdict="ok", found=version)
    if not found.gpus:
        yield Finding(title="GPU", verdict="note", found="none, or CUDA_VISIBLE_DEVICES hides them")
    for index, gpu in enumerate(found.gpus):
        text = f"{gpu.name}, {gib(gpu.memory)}, {gpu.capability}"
        yield Finding(title=f"GPU {index}", verdict="ok", found=text)


def cuda(machine: Machine) -> Iterator[Finding]:
    """The CUDA runtime, and whether the driver runs it."""
    title, runtime = "CUDA runtime", machine.cuda_runtime
    if runtime is None:
        yield Finding(title=title, verdict="note", found="none; only engines on a GPU want one")
        return
    least = LEAST_DRIVERS.get(numbers(runtime)[0])
    major = numbers(machine.driver.version or "0")[0] if machine.driver else 0
    if least and 0 < major < least:
        yield Finding(
            title=title,
            verdict="problem",
            found=f"{runtime}, under driver {machine.driver.version if machine.driver else ''}",
            wanted=f"driver {least} or newer",
            remedy="Update the driver, or install a CUDA of its major version.",
        )
        return
    yield Finding(title=title, verdict="ok", found=runtime)


def tensorrt(machine: Machine) -> Iterator[Finding]:
    """TensorRT and TensorRT-RTX: versions, and what they build for."""
    for kind, title in (("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX targets")):
        library = machine.libraries.get(kind)
        if library is None:
            if kind == "tensorrt":
                yield Finding(
                    title=title,
                    verdict="note",
                    found="not installed; it builds plans for this machine's GPU",
                    remedy="`pip install 'iblip[gpu]'`, where there is a GPU.",
                )
        elif library.fault:
            yield Finding(
                title=title,
                verdict="problem",
                found=f"it does not load: {library.fault}",
                wanted="a library that loads",
                remedy="Install it again, at the version that constraints.txt has.",
            )
        else:
            targets = ", ".join(library.targets) or "this machine's GPU"
            yield Finding(title=title, verdict="ok", found=f"{library.version}, for {targets}")


def onnxruntime(machine: Machine) -> Iterator[Finding]:
    """Which package it is, whether it loads, and what its engines lack."""
    title = "execution providers"
    there = [name for name in ONNXRUNTIMES if name in machine.packages]
    if len(there) > 1:
        yield Finding(
            title=title,
            verdict="problem",
            found=" and ".join(f"{name} {machine.packages[name]}" for name in there),
            wanted="one of them: each writes over the other's files",
            remedy=f"`pip uninstall -y {' '.join(there)}`, then install one: `pip install "
            "onnxruntime` (CPU) or `pip install onnxruntime-gpu`.",
        )
    if machine.providers is not None:
        runs = [
            kind
            for kind, obstacle in machine.obstacles.items()
            if kind.startswith("onnxruntime") and obstacle is None
        ]
        yield Finding(
            title=title,
            verdict="ok",
            found=f"{', '.join(machine.providers)}; these run: {', '.join(runs) or 'none'}",
        )
        for kind, provider in PROVIDERS.items():
            obstacle = machine.obstacles.get(kind)
            if obstacle and provider.name in machine.providers:
                yield Finding(title=kind, verdict="note", found=f"offered, but: {obstacle}")


def torch(machine: Machine) -> Iterator[Finding]:
    """The build of torch."""
    version = machine.packages.get("torch")
    if version is not None:
        cuda = f"for CUDA {machine.torch_cuda}" if machine.torch_cuda else "for CPUs"
        yield Finding(title="torch", verdict="ok", found=f"{version}, {cuda}")


def loading(machine: Machine) -> Iterator[Finding]:
    """Packages that are installed and do not load."""
    for package, fault in machine.faults.items():
        version = machine.packages.get(package, "")
        optional = package == "torchvision"
        yield Finding(
            title=package,
            verdict="problem",
            found=f"{version} does not load: {fault}",
            wanted="one that fits torch, or none: with it transformers' InstructBLIP does not load"
            if optional
            else "one that loads",
            remedy="`pip uninstall torchvision`: nothing here needs it."
            if optional
            else f"`pip install --force-reinstall {package}`.",
        )


def triton(machine: Machine) -> Iterator[Finding]:
    """The server, and whether this system runs it."""
    found = machine.triton
    if found is None:
        yield Finding(
            title="Triton",
            verdict="note",
            found="none here; it serves builds",
            remedy="`pip install 'iblip[server]'`, or a container: docs/deploy.md.",
        )
        return
    version = found.version or "of unknown version"
    backends = ", ".join(found.backends) or "none"
    text = f"{version} ({found.origin}), backends: {backends}"
    if found.wheel and machine.glibc and numbers(machine.glibc) < WHEEL_GLIBC:
        least = ".".join(map(str, WHEEL_GLIBC))
        yield Finding(
            title="Triton",
            verdict="problem",
            found=f"{text}, on glibc {machine.glibc}",
            wanted=f"glibc {least} or newer",
            remedy="Serve in NVIDIA's container (docs/deploy.md), or on a newer system.",
        )
        return
    yield Finding(title="Triton", verdict="ok", found=text)


def vllm(machine: Machine) -> Iterator[Finding]:
    """vLLM's environment."""
    found = machine.vllm
    if found is None:
        return
    if found.python is None:
        text = "no environment of its own; builds with --llm-engine vllm want one"
        yield Finding(title="vLLM", verdict="note", found=text, remedy=found.advice)
    elif found.version is None:
        yield Finding(
            title="vLLM",
            verdict="warning",
            found=f"{found.python} has none",
            wanted="vLLM in that environment",
            remedy="`iblip vllm install` puts it there.",
        )
    else:
        yield Finding(title="vLLM", verdict="ok", found=f"{found.version} ({found.python})")


def memory(machine: Machine) -> Iterator[Finding]:
    """Free memory, for a build."""
    yield from _room("memory", machine.memory, BUILD_MEMORY, BUILD_MEMORY, "End what else runs.")


def disk(machine: Machine) -> Iterator[Finding]:
    """Free disk, for a build."""
    remedy = "Make room, or build to another disk with --output."
    yield from _room("disk", machine.disk, LEAST_DISK, BUILD_DISK, remedy)


def shared_memory(machine: Machine) -> Iterator[Finding]:
    """Free shared memory, for a server."""
    remedy = "Make /dev/shm larger; in Docker with `--shm-size 1g`."
    size = machine.shared_memory
    yield from _room("shared memory", size, SHARED_MEMORY, SHARED_MEMORY, remedy)


def _room(title: str, free: int | None, least: int, enough: int, remedy: str) -> Iterator[Finding]:
    if free is None:
        yield Finding(title=title, verdict="note", found="this system does not say")
    elif free < least:
        wanted = f"{gib(least)} or more"
        yield Finding(
            title=title, verdict="warning", found=f"{gib(free)} free", wanted=wanted, remedy=remedy
        )
    else:
        small = f"; the largest build so far wrote {gib(enough)}" if free < enough else ""
        verdict: Verdict = "note" if small else "ok"
        yield Finding(title=title, verdict=verdict, found=f"{gib(free)} free{small}")


def ports(machine: Machine) -> Iterator[Finding]:
    """Whether `iblip serve` could listen where it does unless told otherwise."""
    spelt = ", ".join(f"{port} ({name})" for name, port in PORTS.items())
    if machine.taken:
        taken = ", ".join(str(PORTS[name]) for name in machine.taken)
        yield Finding(
            title="ports",
            verdict="note",
            found=f"{taken} in use: by a server that runs, perhaps",
            remedy="`iblip serve` takes others with --http-port, --grpc-port and --metrics-port.",
        )
    else:
        yield Finding(title="ports", verdict="ok", found=f"{spelt} are free")


Check = Callable[[Machine], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    python,
    jobs,
    loading,
    torch,
    onnxruntime,
    driver,
    cuda,
    tensorrt,
    triton,
    vllm,
    memory,
    disk,
    shared_memory,
    ports,
)
"""In the order in which they are told."""


def container_driver(container: Container, machine: Machine) -> Finding:
    """Whether this machine's driver and GPUs run a container."""
    title, least = f"driver for {container.tag}", container.least_driver
    newest = f" ({container.driver} came with it)" if container.driver else ""
    wanted = f"{least} or newer, for CUDA {container.cuda}{newest}"
    has = machine.driver
    if has is None or has.version is None:
        return Finding(
            title=title,
            verdict="note",
            found="this machine has no driver to tell",
            remedy=f"Where the container runs on a GPU, the driver is {wanted}.",
        )
    old = [gpu for gpu in has.gpus if _capability(gpu.capability) < LEAST_CAPABILITY]
    gpus = "".join(f", {gpu.name} ({gpu.capability})" for gpu in old)
    if old and len(old) == len(has.gpus):
        return Finding(
            title=title,
            verdict="problem",
            found=has.version + gpus,
            wanted=f"a GPU from sm{LEAST_CAPABILITY[0]}{LEAST_CAPABILITY[1]} on",
            remedy="Run it on a machine that has one, or take an older container.",
        )
    if numbers(has.version)[0] < least:
        return Finding(
            title=title,
            verdict="problem",
            found=has.version,
            wanted=wanted,
            remedy="Update the driver. Data-centre GPUs may keep an older one where CUDA's forward "
            "compatibility says so; else take an older container.",
        )
    if container.driver and numbers(has.version) < numbers(container.driver):
        text = "CUDA runs on it with less than all its features (minor version compatibility)."
        return Finding(title=title, verdict="note", found=has.version, remedy=text)
    if old:
        text = "It does not run on the GPUs that are named: give it the others (`--gpus`)."
        return Finding(title=title, verdict="note", found=has.version + gpus, remedy=text)
    return Finding(title=title, verdict="ok", found=has.version)


def _capability(name: str) -> tuple[int, int]:
    """`sm89` is (8, 9), `sm120` is (12, 0)."""
    digits = name.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])
