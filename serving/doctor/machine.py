"""What this machine and its Python have: facts, without a judgement."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iblip.engines.hardware.nvidia import Driver, find_driver, find_runtime
from iblip.serving.doctor import probes
from iblip.serving.doctor.requirements import (
    Requirement,
    installed_packages,
    read_requirements,
)
from iblip.serving.server.memory import available

LOOPBACK = "127.0.0.1"

PORTS: Mapping[str, int] = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002, "health": 8003}
"""The default ports of `iblip serve`."""

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and the Python environment that this runs in.

    Attributes:
        python: its version.
        packages: versions of installed packages, by normalised name.
        requirements: see `serving.doctor.requirements.read_requirements`.
        driver: NVIDIA's; `None` where there is none.
        cuda_runtime: version of the CUDA runtime; `None` where there is none.
        libraries: the installed TensorRT libraries, by kind.
        obstacles: engine kind to what keeps it from running in this Python; `None` if nothing does.
        providers: ONNX Runtime's; `None` where it is not installed or does not load.
        torch_cuda: the CUDA that torch was built for; `None` for a CPU build, or without torch.
        faults: packages that are installed but do not load, and why.
        triton: the server that would be started.
        vllm: vLLM's environment.
        glibc: version; `None` on other systems.
        memory, disk, shared_memory: free bytes; `None` where the system does not report them.
        taken: names of the `PORTS` that something listens on.
    """

    python: str = "3.11.0"
    packages: Mapping[str, str] = field(default_factory=dict)
    requirements: Mapping[str, tuple[Requirement, ...]] = field(default_factory=dict)
    driver: Driver | None = None
    cuda_runtime: str | None = None
    libraries: Mapping[str, probes.TensorRt] = field(default_factory=dict)
    obstacles: Mapping[str, str | None] = field(default_factory=dict)
    providers: tuple[str, ...] | None = None
    torch_cuda: str | None = None
    faults: Mapping[str, str] = field(default_factory=dict)
    triton: probes.Triton | None = None
    vllm: probes.Vllm | None = None
    glibc: str | None = None
    memory: int | None = None
    disk: int | None = None
    shared_memory: int | None = None
    taken: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[str, ...]:
        """The compute capability of each GPU."""
        return tuple(gpu.capability for gpu in self.driver.gpus) if self.driver else ()


def read_machine() -> Machine:
    """This machine as it is now. Loads ONNX Runtime and TensorRT where they are installed."""
    packages = installed_packages()
    return Machine(
        python=".".join(map(str, sys.version_info[:3])),
        packages=packages,
        requirements=read_requirements(),
        driver=find_driver(),
        cuda_runtime=find_runtime(),
        libraries=probes.tensorrt_libraries(),
        obstacles=probes.engine_obstacles(),
        providers=probes.onnxruntime_providers(),
        torch_cuda=probes.torch_cuda(),
        faults=probes.load_faults(packages),
        triton=probes.find_server(),
        vllm=probes.find_vllm(),
        glibc=probes.glibc(),
        memory=available(),
        disk=shutil.disk_usage(Path.cwd()).free,
        shared_memory=shared_memory(),
        taken=tuple(name for name, port in PORTS.items() if _is_taken(port)),
    )


def shared_memory() -> int | None:
    """Free bytes of `/dev/shm`, through which Triton and its Python models pass tensors."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        # As Triton binds: a port that was used a moment ago counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return True
    return False
