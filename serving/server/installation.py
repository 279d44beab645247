"""Where Triton is on this machine, and what it needs around it to run.

Three places, in this order: the one that the caller names; `tritonserver` as NVIDIA's container has
it; the one that the `nvidia-pytriton` wheel carries (Linux, x86-64, no GPU needed).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from iblip.engines.hardware.containers import WHEELS
from iblip.export.errors import ServingError
from iblip.export.system.installing import install_command

CONTAINER = Path("/opt/tritonserver")
"""Where NVIDIA's container keeps Triton."""


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A Triton that can be started.

    Attributes:
        binary: `tritonserver`.
        caches: folder of response cache implementations; `None` leaves the binary's own default.
        backends: folder of backends; `None` leaves the binary's own default.
        python_stub: what runs Python models for this interpreter's version; `None` where
            `backends` has its own.
        libraries: folders that the dynamic linker must search.
        origin: for people: which of the three places this is.
        walled: whether a request can end it, so that a wall has to stand before it.
    """

    binary: Path
    origin: str
    backends: Path | None = None
    caches: Path | None = None
    python_stub: Path | None = None
    libraries: tuple[Path, ...] = ()
    walled: bool = False

    @property
    def version(self) -> str | None:
        """Triton's own; `None` where nothing here tells."""
        if self.python_stub is not None:
            return WHEELS.get(metadata.version("nvidia-pytriton"))
        record = self.binary.parents[1] / "TRITON_VERSION"  # NVIDIA's containers have it
        return record.read_text(encoding="utf-8").strip() if record.is_file() else None

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The backends that it has; none where its folder of them is not in the usual place."""
        folder = self.backends or self.binary.parents[1] / "backends"
        if not folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))

    def arguments(self, scratch: Path) -> list[str]:
        """Flags that point the binary at its parts; what must be put together goes to `scratch`."""
        flags = []
        if self.backends is not None:
            flags.append(f"--backend-directory={self._backend_directory(scratch)}")
        if self.caches is not None:
            flags.append(f"--cache-directory={self.caches}")
        return flags

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what the server and the interpreters of its Python models need.

        This interpreter's own folder comes first on `PATH`: Python models then run in its
        environment.
        """
        environment = dict(base)
        libraries = [str(path) for path in self.libraries]
        _prepend(environment, "LD_LIBRARY_PATH", libraries)
        _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
        return environment

    def _backend_directory(self, scratch: Path) -> Path:
        assert self.backends is not None
        if self.python_stub is None:
            return self.backends
        # The wheel keeps the backend and its interpreter apart; Triton wants them in one folder,
        # and an installed package is not ours to write to.
        python = scratch / "backends" / "python"
        python.mkdir(parents=True)
        for part in (*(self.backends / "python").iterdir(), self.python_stub):
            (python / part.name).symlink_to(part)
        return python.parent


def find_triton(binary: Path | None = None) -> Installation:
    """The Triton to start.

    Args:
        binary: a `tritonserver`, or a folder with `bin/tritonserver`; `None` looks in the usual
            places.

    Raises:
        ServingError: there is none; the message names every place and how to get one.
    """
    if binary is not None:
        return _given(binary)
    for find in (_container, _wheel):
        installation = find()
        if installation is not None:
            return installation
    raise ServingError(
        f"there is no Triton server: neither {CONTAINER}/bin/tritonserver (NVIDIA's container), "
        "nor tritonserver on PATH, nor the nvidia-pytriton package. "
        f"Install one with `{install_command('server')}`, or name it with --triton PATH."
    )


def _given(path: Path) -> Installation:
    binary = path / "bin" / "tritonserver" if path.is_dir() else path
    wheel = _wheel()
    if wheel is not None and binary.exists() and binary.samefile(wheel.binary):
        return wheel
    if not os.access(binary, os.X_OK) or not binary.is_file():
        raise ServingError(f"{binary} is not a Triton server: no such executable file")
    return Installation(binary=binary.absolute(), origin=f"given: {binary}")


def _container() -> Installation | None:
    path = os.environ.get("PATH", "")
    found = shutil.which("tritonserver", path=f"{CONTAINER / 'bin'}{os.pathsep}{path}")
    if found is None:
        return None
    return Installation(binary=Path(found).absolute(), origin=f"installed: {found}")


def _wheel() -> Installation | None:
    spec = find_spec("pytriton")  # finds it without importing it
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    home = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    binary = home / "bin" / "tritonserver"
    if not binary.is_file() or not stub.is_file():
        return None
    libpython = sysconfig.get_config_var("LIBDIR")
    return Installation(
        binary=binary,
        origin="the nvidia-pytriton package",
        backends=home / "backends",
        caches=home / "caches",
        python_stub=stub,
        libraries=(
            package.parent / "nvidia_pytriton.libs",
            *([Path(libpython)] if libpython else []),
        ),
        walled=True,
    )


def _prepend(environment: dict[str, str], name: str, folders: list[str]) -> None:
    old = environment.get(name)
    value = os.pathsep.join([*folders, *([old] if old else [])])
    if value:
        environment[name] = value
