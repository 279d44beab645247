"""Checks of the libraries that build and run engines: TensorRT, TensorRT-RTX and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.engines.hardware.findings import Finding
from iblip.engines.onnxruntime.providers import PROVIDERS
from iblip.export.system.installing import install_command
from iblip.serving.doctor.machine import Machine

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Packages that provide the module `onnxruntime`; each overwrites the others' files."""


def check_tensorrt(machine: Machine) -> Iterator[Finding]:
    """TensorRT and TensorRT-RTX: versions, and the GPUs they build for."""
    for kind, title in (("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX targets")):
        library = machine.libraries.get(kind)
        if library is None:
            if kind == "tensorrt":
                yield Finding(
                    title=title,
                    verdict="note",
                    found="not installed; it builds plans for this machine's GPU",
                    remedy=f"`{install_command('tensorrt')}`, where there is a GPU.",
                )
        elif library.fault:
            yield Finding(
                title=title,
                verdict="problem",
                found=f"it does not load: {library.fault}",
                wanted="a library that loads",
                remedy="Reinstall it, at the version in constraints.txt.",
            )
        else:
            targets = ", ".join(library.targets) or "this machine's GPU"
            yield Finding(title=title, verdict="ok", found=f"{library.version}, for {targets}")


def check_onnxruntime(machine: Machine) -> Iterator[Finding]:
    """Which package provides it, whether it loads, and what its engines lack."""
    title = "execution providers"
    present = [name for name in ONNXRUNTIMES if name in machine.packages]
    if len(present) > 1:
        yield Finding(
            title=title,
            verdict="problem",
            found=" and ".join(f"{name} {machine.packages[name]}" for name in present),
            wanted="only one of them: each overwrites the other's files",
            remedy=f"`pip uninstall -y {' '.join(present)}`, then install one: "
            f"`{install_command('cpu')}` or `{install_command('gpu')}`.",
        )
    if machine.providers is not None:
        usable = [
            kind
            for kind, obstacle in machine.obstacles.items()
            if kind.startswith("onnxruntime") and obstacle is None
        ]
        yield Finding(
            title=title,
            verdict="ok",
            found=f"{', '.join(machine.providers)}; usable: {', '.join(usable) or 'none'}",
        )
        for kind, provider in PROVIDERS.items():
            obstacle = machine.obstacles.get(kind)
            if obstacle and provider.name in machine.providers:
                yield Finding(title=kind, verdict="note", found=f"offered, but: {obstacle}")
