"""Finds TensorRT 10 or 11, or TensorRT-RTX, and knows the few ways in which they differ.

All three have the same Python interface. Their differences are handled here, so that the builder
need not know which library it has. Importing this module loads none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.tensorrt.options import FLAGS, PlanOptions
from iblip.export.errors import EngineError, OptionError
from iblip.export.system.installing import install_command

NEEDS_DEVICE = ("NONE", "CURRENT")
"""Names in the library's list of targets that mean the GPU of the building machine."""


UNKNOWN_VERSION = "of unknown version"
"""The version of a library that does not tell its own and that no package manager installed."""

DTYPES = {
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float32": "FLOAT",
}
"""A contract's dtypes as TensorRT spells them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a kind of engine finds its library.

    Attributes:
        modules: Python modules with TensorRT's interface, in the order in which to try them.
        distributions: packages that may have installed it, to read the version from.
        install: what to do if none is found.
        times_kernels: whether its builder measures kernels on the GPU, so that it is faster with
            the timings of other builds (`engines.tensorrt.timing`).
    """

    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    times_kernels: bool


SOURCES: Mapping[str, Source] = {
    "tensorrt": Source(
        modules=("tensorrt",),
        distributions=("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        install=f"Run `{install_command('tensorrt')}` on a machine with an NVIDIA GPU.",
        times_kernels=True,
    ),
    "tensorrt-rtx": Source(
        # The bindings alone are enough; the package around them only renames them.
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings.tensorrt_rtx"),
        distributions=("tensorrt_rtx_cu12_bindings", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx"),
        install=f"Run `{install_command('tensorrt-rtx')}`.",
        times_kernels=False,
    ),
}
"""Engine kind to where its library is found."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A loaded TensorRT of one kind.

    Attributes:
        kind: a key of `SOURCES`.
        module: the Python module, with TensorRT's interface.
        version: of the installed package, or `UNKNOWN_VERSION`.
    """

    kind: str
    module: Any
    version: str

    @property
    def targets(self) -> tuple[str, ...]:
        """GPU families that it can build for without such a GPU, as `sm89`; empty if it cannot."""
        capability = getattr(self.module, "ComputeCapability", None)
        names = capability.__members__ if capability else ()
        return tuple(name.lower() for name in names if name not in NEEDS_DEVICE)

    @property
    def network_flags(self) -> int:
        """Flags for `create_network`, so that a network keeps the graph's own dtypes.

        TensorRT 10 and TensorRT-RTX need the flag. TensorRT 11 has it still, though it knows no
        other mode; where a release drops it, none is set.
        """
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def check_targets(self, targets: Iterable[str]) -> tuple[str, ...]:
        """The targets without repeats, as this library spells them; empty is this machine's GPU.

        Raises:
            OptionError: the library does not offer one of them (the message lists those that it
                offers), or there is neither a target nor a GPU.
        """
        names = tuple(dict.fromkeys(target.lower() for target in targets))
        if not names and not has_nvidia_gpu():
            remedy = f"Name one with --target: {', '.join(self.targets)}."
            if not self.targets:
                remedy = "Build on the machine whose GPU the plan is for."
            raise OptionError(f"there is no NVIDIA GPU to build for here. {remedy}")
        for target in names:
            if not self.targets:
                raise OptionError(
                    f"--target {target}: {self.kind} builds for this machine's GPU only. "
                    "Leave --target out."
                )
            if target not in self.targets:
                raise OptionError(
                    f"--target {target}: {self.kind} {self.version} builds for "
                    f"{', '.join(self.targets)}. Choose among these."
                )
        return names

    def check(self, options: PlanOptions) -> None:
        """Refuses options that this library cannot build with on this machine.

        Raises:
            OptionError: it does not support a target (see `check_targets`) or a flag; the message
                has the reason and what it offers instead.
        """
        self.check_targets(options.targets)
        for word in options.flags:
            reason = self._find_obstacle(word)
            if reason:
                offered = [name for name in FLAGS if not self._find_obstacle(name)]
                raise OptionError(
                    f"--builder-flag {word}: {self.kind} {self.version} cannot do that here: "
                    f"{reason}. It offers {', '.join(offered)}."
                )

    def _find_obstacle(self, word: str) -> str | None:
        """Why it does not support a flag of `FLAGS`; `None` if it does."""
        flag = FLAGS[word]
        if self.kind in flag.refused:
            return flag.refused[self.kind]
        members = getattr(getattr(self.module, flag.kind, None), "__members__", {})
        if flag.member not in members:
            return f"it has no {flag.kind}.{flag.member}"
        if self.kind in flag.needs_gpu and not has_nvidia_gpu():
            return flag.needs_gpu[self.kind]
        return None


def find_library(kind: str) -> Library:
    """Loads the library of a kind of engine.

    Args:
        kind: a key of `SOURCES`.

    Raises:
        EngineError: it is not installed, or does not load on this machine; the message says what
            to do.
    """
    source = SOURCES[kind]
    faults = []
    for name in source.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            faults.append(f"{name}: {error}")
            continue
        return Library(kind=kind, module=module, version=_find_version(module, source))
    raise EngineError(f"{kind} cannot be loaded ({'; '.join(faults)}). {source.install}")


def _find_version(module: Any, source: Source) -> str:
    version = getattr(module, "__version__", None)
    if version is not None:
        return str(version)
    for distribution in source.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return UNKNOWN_VERSION
