"""What `iblip prove` has shown on this machine's hardware: a cache of this user's.

A proof holds for builds of the same engines and precisions, on a GPU of the same architecture, with
the same driver and versions of the libraries. `--engine auto` takes an engine that has one. A file
for each, in `$IBLIP_CACHE/proofs`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iblip.engines.hardware.nvidia import Driver, find_driver
from iblip.engines.kinds import runs_on_gpu
from iblip.export.system.cache_directory import cache_directory
from iblip.export.system.files import write_whole
from iblip.export.system.toolchain import library_versions

logger = logging.getLogger(__name__)

LIBRARIES = (
    "iblip",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt",
    "tensorrt-rtx-cu12-libs",
    "tensorrt-rtx-cu13-libs",
    "openvino",
    "vllm",
    "cuda-bindings",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
)
"""Distributions whose versions a proof depends on."""

STUB = "stub"
"""In the name of a device that stub libraries pose as: its kernels compute nothing."""

CPU = "cpu"
"""The architecture where no engine of a build runs on a GPU."""


@dataclass(frozen=True, kw_only=True)
class ProofKey:
    """What a proof is of.

    Attributes:
        engines: the engine's kind of each component.
        precision: the word of each component.
        architecture: of the GPU, such as `sm90`; `CPU` where no engine runs on one.
        driver: the NVIDIA driver's version; empty where there is none, or it does not tell.
        versions: of `LIBRARIES` that are installed.
    """

    engines: Mapping[str, str]
    precision: Mapping[str, str]
    architecture: str
    driver: str
    versions: Mapping[str, str]

    @property
    def file(self) -> str:
        """Name of the proof's file."""
        content = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return f"{self.engines['vision_encoder']}-{self.architecture}-{digest}.json"


def key_here(
    engines: Mapping[str, str], precision: Mapping[str, str], driver: Driver | None = None
) -> ProofKey:
    """The key of such builds on this machine.

    Args:
        engines: the engine's kind of each component.
        precision: the word of each component.
        driver: this machine's; `None` looks for it.
    """
    on_gpu = any(runs_on_gpu(kind) or kind == "vllm" for kind in engines.values())
    driver = (driver or find_driver()) if on_gpu else None
    return ProofKey(
        engines=dict(engines),
        precision=dict(precision),
        architecture=driver.gpus[0].capability if driver and driver.gpus else CPU,
        driver=(driver.version or "") if driver else "",
        versions=library_versions(LIBRARIES),
    )


def is_stub(name: str) -> bool:
    """Whether a device of that name is none: libraries that compute nothing pose as it."""
    return STUB in name.lower()


def keep_proof(key: ProofKey, facts: Mapping[str, Any]) -> Path | None:
    """Keeps a proof for this user; returns its file, `None` where there is no place for it.

    Args:
        key: what it is of.
        facts: the build's name, the GPU's, when it was made; JSON-ready.
    """
    directory = cache_directory("proofs")
    if directory is None:
        return None
    path = directory / key.file
    try:
        directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"key": asdict(key), **facts}, indent=1, ensure_ascii=False)
        write_whole(path, f"{content}\n".encode())
    except OSError as error:
        logger.warning("the proof is not kept for --engine auto: %s", error)
        return None
    return path


def drop_proof(key: ProofKey) -> None:
    """Forgets a proof that no longer holds."""
    directory = cache_directory("proofs")
    if directory is not None:
        (directory / key.file).unlink(missing_ok=True)


def find_proof(key: ProofKey) -> Mapping[str, Any] | None:
    """What `keep_proof` was given for this key; `None` if there is no such proof."""
    directory = cache_directory("proofs")
    if directory is None:
        return None
    try:
        proof: dict[str, Any] = json.loads((directory / key.file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return proof if proof.get("key") == asdict(key) else None
