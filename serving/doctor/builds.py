"""The table of checks of a build: what loads its engines, here and in a container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iblip.engines.hardware.compatibility import Place, fit
from iblip.engines.hardware.containers import DEPLOYED, Container
from iblip.engines.hardware.findings import Finding
from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import IblipError, ServingError
from iblip.serving.doctor.machine import Machine
from iblip.serving.repository.assembling import COMPONENTS, REPOSITORY
from iblip.serving.repository.files import faults, files_of_build
from iblip.serving.repository.model_config import backend_of, read_config
from iblip.serving.server.memory import gib, memory_of_build
from iblip.serving.server.outdated import how_to_rebuild, outdated_models

BATCH = 8
"""Rows of one run of a component, unless the build says otherwise (`--max-batch`)."""


@dataclass(frozen=True, kw_only=True)
class BuildFindings:
    """What was found of one build.

    Attributes:
        directory: as it was given.
        name: of its checkpoint; `None` where it is no build.
        here: what this machine makes of it.
        there: what the container makes of it; empty where none was named.
    """

    directory: Path
    name: str | None
    here: tuple[Finding, ...]
    there: tuple[Finding, ...] = ()


def findings_of_build(
    directory: Path, machine: Machine, container: Container | None = None
) -> BuildFindings:
    """Everything about one build.

    Where a container is named, it is the container that was asked about: what is missing outside of
    it is worth a note, and no more.

    Args:
        directory: of the build; what is not one is a problem, too.
        machine: this one.
        container: where it shall be served, if that is not here.
    """
    try:
        manifest = Manifest.read(directory)
        backends = triton_backends(directory, manifest)
    except (IblipError, OSError) as error:
        return BuildFindings(directory=directory, name=None, here=(_no_build(error),))
    files = (*_files(directory, manifest), *_models(directory))
    here = (*_components(manifest, backends, place_here(machine)), *_vllm(manifest, machine))
    here += (*_memory(directory, manifest, machine), *_shared_memory(manifest, machine))
    there: tuple[Finding, ...] = ()
    if container is not None:
        here = tuple(map(_noted, here))
        there = (
            *_components(manifest, backends, place_of_container(container, machine)),
            *_packages(manifest, backends, container),
        )
    return BuildFindings(directory=directory, name=manifest.name, here=files + here, there=there)


def place_here(machine: Machine) -> Place:
    """This machine, as a place that engines are loaded in."""
    versions = {kind: library.version for kind, library in machine.libraries.items()}
    return Place(
        name="this machine",
        gpus=machine.gpus,
        backends=machine.triton.backends if machine.triton else (),
        tensorrt=versions.get("tensorrt"),
        tensorrt_rtx=versions.get("tensorrt-rtx"),
        obstacle=machine.obstacles.get,
    )


def place_of_container(container: Container, machine: Machine) -> Place:
    """A container, run on this machine."""
    return Place(
        name=container.tag,
        gpus=machine.gpus,
        backends=container.backends,
        tensorrt=container.tensorrt,
        container=True,
    )


def triton_backends(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Component to the backend of Triton that its config names.

    Raises:
        ServingError: a config cannot be read, or names none.
    """
    backends = {}
    for name in manifest.components:
        path = directory / REPOSITORY / name / "config.pbtxt"
        backend = backend_of(read_config(path))
        if not backend:
            raise ServingError(f"{path} names no backend. Build it again.")
        backends[name] = backend
    return backends


def _no_build(error: Exception) -> Finding:
    return Finding(
        title="build",
        verdict="problem",
        found=str(error),
        wanted="a build that `export build` has made",
        remedy="Name its directory, or build it again.",
    )


def _noted(finding: Finding) -> Finding:
    return finding if finding.verdict == "ok" else replace(finding, verdict="note")


def _files(directory: Path, manifest: Manifest) -> Iterator[Finding]:
    """Whether every file that serving it opens is there, and as large as it was."""
    files = files_of_build(manifest)
    odd = [f"{path} ({fault})" for path, fault in faults(directory, files)]
    if odd:
        yield Finding(
            title="files",
            verdict="problem",
            found=", ".join(odd),
            wanted="every file of the manifest, as it was built",
            remedy="Copy the build again, whole and with its links, or build it again.",
        )
    else:
        yield Finding(title="files", verdict="ok", found=f"all {len(files)} are there")


def _models(directory: Path) -> Iterator[Finding]:
    """Whether the Python models import this project by its name of today."""
    if models := outdated_models(directory / REPOSITORY):
        yield Finding(
            title="Python models",
            verdict="problem",
            found=f"the model.py of {', '.join(models)} imports `serving`: the build was made "
            "before this project was one package",
            wanted="models that import `iblip.serving`",
            remedy=how_to_rebuild(directory / REPOSITORY),
        )


def _components(manifest: Manifest, backends: Mapping[str, str], place: Place) -> Iterator[Finding]:
    """Of each component, whether the place has Triton's backend for it, and loads its engine."""
    for name, record in manifest.components.items():
        yield _backend(name, record.engine.kind, backends[name], place) or fit(
            name, record.engine, replace(place, python=backends[name] == "python")
        )


def _backend(title: str, kind: str, backend: str, place: Place) -> Finding | None:
    if backend == "tensorrt" and kind != "tensorrt":
        return Finding(
            title=title,
            verdict="problem",
            found=f"{kind}, in Triton's `tensorrt` backend",
            wanted="a plan by TensorRT: the backend reads no other",
            remedy='Build it with --engine tensorrt, or set `backend: "python"` in its config.',
        )
    if backend in place.backends:
        return None
    has = f"has {', '.join(place.backends)}" if place.backends else "is none here"
    return Finding(
        title=title,
        verdict="problem",
        found=f"{kind}, in Triton's `{backend}` backend; Triton {has}",
        wanted=f"a Triton with the backend `{backend}`",
        remedy=f"Serve it in {DEPLOYED.image} (docs/deploy.md)."
        if not place.container
        else f"Take a container that has it, such as {DEPLOYED.tag}.",
    )


def _packages(
    manifest: Manifest, backends: Mapping[str, str], container: Container
) -> Iterator[Finding]:
    """What the container's Python must get: NVIDIA's image has nothing of this project."""
    kinds = {
        record.engine.kind
        for name, record in manifest.components.items()
        if backends[name] == "python"
    }
    runtime = ""
    if any(kind.startswith("onnxruntime-") for kind in kinds):
        runtime = " with onnxruntime-gpu"
    elif "onnxruntime" in kinds:
        runtime = " with onnxruntime, or onnxruntime-gpu"
    yield Finding(
        title="Python models",
        verdict="note",
        found=f"Python {container.python} of {container.tag} needs this project{runtime}",
        remedy="The image that deploy/Dockerfile makes has them.",
    )
    if "vllm" in kinds:
        yield Finding(
            title="vLLM",
            verdict="note",
            found="the language model wants vLLM in an environment of its own; the Python of "
            f"{container.tag} has {container.vllm or 'none'}",
            remedy="`iblip vllm install --package vllm` in the image makes it; IBLIP_VLLM_PYTHON "
            "names it.",
        )


def _vllm(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    kind = manifest.components["language_model"].engine.kind
    if kind == "vllm" and (machine.vllm is None or machine.vllm.version is None):
        yield Finding(
            title="vLLM",
            verdict="problem",
            found="there is none for the language model",
            wanted="an environment with vLLM",
            remedy="`iblip vllm install` makes it.",
        )


def _memory(directory: Path, manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """What serving it takes of memory, where that can be told."""
    takes, free = memory_of_build(directory, manifest), machine.memory
    if takes is None or free is None:
        return
    if takes.most <= free:
        yield Finding(title="memory", verdict="ok", found=f"it takes {takes}")
        return
    yield Finding(
        title="memory",
        verdict="warning",
        found=f"{gib(free)} free",
        wanted=str(takes),
        remedy="It may not load. Serve it where there is more, or build it smaller: `--precision "
        "language_model=int4`."
        if free < takes.least
        else "Fewer slots or positions: `slots` and `max_length` in language_model/config.pbtxt.",
    )


def _shared_memory(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Tensors that the models of a full server hand on, against `/dev/shm`."""
    free, wants = machine.shared_memory, tensors_in_flight(manifest)
    if free is not None and free < wants:
        yield Finding(
            title="shared memory",
            verdict="warning",
            found=f"{gib(free)} free",
            wanted=f"{gib(wants)}: a batch of pictures, and visual prompts of all requests that "
            "may wait",
            remedy="Make /dev/shm larger; in Docker with `--shm-size`.",
        )


def tensors_in_flight(manifest: Manifest) -> int:
    """Bytes of tensors between models when a server is full: a batch in each component, and the
    visual prompt of every request that runs or waits. An estimate: Triton's own blocks are not
    counted."""
    limits = manifest.limits
    contracts = [manifest.components[name].graphs["model"].contract for name in COMPONENTS]
    batch = sum(_row_bytes(contract) for contract in contracts) * BATCH * limits.images
    prompt = _bytes(contracts[-1], "visual_prompt") * limits.images
    return batch + prompt * (limits.slots + limits.queue)


def _row_bytes(contract: Contract) -> int:
    names = [spec.name for spec in (*contract.inputs, *contract.outputs)]
    return sum(_bytes(contract, name) for name in names)


def _bytes(contract: Contract, name: str) -> int:
    """Bytes of one row of a tensor, dynamic axes apart."""
    spec = next(one for one in (*contract.inputs, *contract.outputs) if one.name == name)
    sizes = [axis for axis in spec.axes[1:] if isinstance(axis, int)]
    return int(np.prod(sizes, dtype=np.int64)) * spec.numpy_dtype.itemsize
