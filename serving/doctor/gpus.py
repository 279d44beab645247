"""Checks of the NVIDIA driver, its GPUs and CUDA: for this machine, and for a container on it."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.engines.hardware.compatibility import numbers
from iblip.engines.hardware.containers import LEAST_CAPABILITY, LEAST_DRIVERS, Container
from iblip.engines.hardware.findings import Finding
from iblip.export.messages import size_text
from iblip.serving.doctor.machine import Machine


def check_driver(machine: Machine) -> Iterator[Finding]:
    """The NVIDIA driver and its GPUs."""
    title, driver = "NVIDIA driver", machine.driver
    if driver is None:
        yield Finding(
            title=title,
            verdict="note",
            found="none: engines run on the CPU",
            remedy="Builds for a GPU can be made here all the same; they need a GPU to run.",
        )
        return
    version = f"{driver.version or 'of unknown version'}, for CUDA {driver.cuda} and older"
    if driver.fault is not None:
        yield Finding(
            title=title,
            verdict="problem",
            found=f"{version}; {driver.fault}",
            wanted="a driver that starts",
            remedy="Load its kernel modules (`sudo modprobe nvidia`), or restart the machine if "
            "the driver has been updated; in a container, give it the GPUs (`--gpus all`).",
        )
        return
    yield Finding(title=title, verdict="ok", found=version)
    if not driver.gpus:
        yield Finding(title="GPU", verdict="note", found="none, or CUDA_VISIBLE_DEVICES hides them")
    for index, gpu in enumerate(driver.gpus):
        text = f"{gpu.name}, {size_text(gpu.memory)}, {gpu.capability}"
        yield Finding(title=f"GPU {index}", verdict="ok", found=text)


def check_cuda(machine: Machine) -> Iterator[Finding]:
    """The CUDA runtime, and whether the driver can run it."""
    title, runtime = "CUDA runtime", machine.cuda_runtime
    if runtime is None:
        yield Finding(title=title, verdict="note", found="none; only engines on a GPU need one")
        return
    oldest = LEAST_DRIVERS.get(numbers(runtime)[0])
    major = numbers(machine.driver.version or "0")[0] if machine.driver else 0
    if oldest and 0 < major < oldest:
        yield Finding(
            title=title,
            verdict="problem",
            found=f"{runtime}, under driver {machine.driver.version if machine.driver else ''}",
            wanted=f"driver {oldest} or newer",
            remedy="Update the driver, or install a CUDA whose major version it supports.",
        )
        return
    yield Finding(title=title, verdict="ok", found=runtime)


def check_container_driver(container: Container, machine: Machine) -> Finding:
    """Whether this machine's driver and GPUs can run a container."""
    title, oldest = f"driver for {container.tag}", container.least_driver
    shipped = f" (the container was made with {container.driver})" if container.driver else ""
    wanted = f"{oldest} or newer, for CUDA {container.cuda}{shipped}"
    driver = machine.driver
    if driver is None or driver.version is None:
        return Finding(
            title=title,
            verdict="note",
            found="this machine has no driver to check",
            remedy=f"Where the container runs on a GPU, the driver must be {wanted}.",
        )
    old = [gpu for gpu in driver.gpus if _capability(gpu.capability) < LEAST_CAPABILITY]
    gpus = "".join(f", {gpu.name} ({gpu.capability})" for gpu in old)
    if old and len(old) == len(driver.gpus):
        return Finding(
            title=title,
            verdict="problem",
            found=driver.version + gpus,
            wanted=f"a GPU of sm{LEAST_CAPABILITY[0]}{LEAST_CAPABILITY[1]} or newer",
            remedy="Run it on a machine that has one, or take an older container.",
        )
    if numbers(driver.version)[0] < oldest:
        return Finding(
            title=title,
            verdict="problem",
            found=driver.version,
            wanted=wanted,
            remedy="Update the driver. Data-centre GPUs may keep an older one if CUDA's forward "
            "compatibility covers it; otherwise take an older container.",
        )
    if container.driver and numbers(driver.version) < numbers(container.driver):
        text = "CUDA runs on it without some of its features (minor version compatibility)."
        return Finding(title=title, verdict="note", found=driver.version, remedy=text)
    if old:
        text = "It does not run on these GPUs: give it only the others (`--gpus`)."
        return Finding(title=title, verdict="note", found=driver.version + gpus, remedy=text)
    return Finding(title=title, verdict="ok", found=driver.version)


def _capability(name: str) -> tuple[int, int]:
    """`sm89` is (8, 9), `sm120` is (12, 0)."""
    digits = name.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])
