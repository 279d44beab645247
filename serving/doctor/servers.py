"""Checks of what serves: Triton, vLLM's environment, and the ports of `iblip serve`."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.engines.hardware.compatibility import numbers
from iblip.engines.hardware.findings import Finding
from iblip.export.system.installing import install_command
from iblip.serving.doctor.machine import PORTS, Machine
from iblip.serving.server.wall.library import HARM, REMEDY

WHEEL_GLIBC = (2, 35)
"""The glibc that the server of `nvidia-pytriton` is linked to."""


def check_triton(machine: Machine) -> Iterator[Finding]:
    """Triton, and whether it runs on this system."""
    triton = machine.triton
    if triton is None:
        yield Finding(
            title="Triton",
            verdict="note",
            found="none here; it serves builds",
            remedy=f"`{install_command('server')}`, or use a container: docs/deploy.md.",
        )
        return
    version = triton.version or "of unknown version"
    backends = ", ".join(triton.backends) or "none"
    text = f"{version} ({triton.origin}), backends: {backends}"
    if triton.wheel and machine.glibc and numbers(machine.glibc) < WHEEL_GLIBC:
        oldest = ".".join(map(str, WHEEL_GLIBC))
        yield Finding(
            title="Triton",
            verdict="problem",
            found=f"{text}, on glibc {machine.glibc}",
            wanted=f"glibc {oldest} or newer",
            remedy="Serve in NVIDIA's container (docs/deploy.md), or on a newer system.",
        )
        return
    if triton.unprotected:
        yield Finding(
            title="Triton",
            verdict="warning",
            found=f"{text}; {HARM} ({triton.unprotected})",
            wanted="the library that prevents it, compiled on this machine",
            remedy=REMEDY,
        )
        return
    yield Finding(title="Triton", verdict="ok", found=text)


def check_vllm(machine: Machine) -> Iterator[Finding]:
    """Checks vLLM's environment."""
    vllm = machine.vllm
    if vllm is None:
        return
    if vllm.python is None:
        text = "no environment of its own; builds with --llm-engine vllm need one"
        yield Finding(title="vLLM", verdict="note", found=text, remedy=vllm.advice)
    elif vllm.version is None:
        yield Finding(
            title="vLLM",
            verdict="warning",
            found=f"{vllm.python} has none",
            wanted="vLLM in that environment",
            remedy="`iblip vllm install` installs it there.",
        )
    else:
        yield Finding(title="vLLM", verdict="ok", found=f"{vllm.version} ({vllm.python})")


def check_ports(machine: Machine) -> Iterator[Finding]:
    """Whether the default ports of `iblip serve` are free."""
    if machine.taken:
        taken = ", ".join(str(PORTS[name]) for name in machine.taken)
        yield Finding(
            title="ports",
            verdict="note",
            found=f"{taken} in use, perhaps by a running server",
            remedy="`iblip serve` uses others with --http-port, --grpc-port, --metrics-port and"
            " --health-port.",
        )
    else:
        ports = ", ".join(f"{port} ({name})" for name, port in PORTS.items())
        yield Finding(title="ports", verdict="ok", found=f"{ports} are free")
