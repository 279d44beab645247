"""Checks of a build: whether its files are there, and what loads its engines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from iblip.engines.hardware.compatibility import Place, fit
from iblip.engines.hardware.containers import DEPLOYED, Container
from iblip.engines.hardware.findings import Finding, Verdict
from iblip.engines.kinds import OPENVINO
from iblip.engines.memory import plan_of_build
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import LANGUAGE_MODEL, Manifest
from iblip.export.errors import ContractError, IblipError, ServingError
from iblip.export.messages import size_text
from iblip.export.system.installing import MissingPackageError
from iblip.serving.doctor.machine import Machine
from iblip.serving.doctor.permissions import check_permissions
from iblip.serving.lint.checking import lint
from iblip.serving.lint.reading import PIP_SERVER, server_of_container
from iblip.serving.lint.rule import Severity
from iblip.serving.proving.record import record_of_build
from iblip.serving.repository.assembling import COMPONENTS, REPOSITORY
from iblip.serving.repository.files import faults, files_of_build
from iblip.serving.repository.model_config import backend_of, read_config
from iblip.serving.server.memory import memory_of_build
from iblip.serving.server.outdated import how_to_rebuild, outdated_models
from iblip.serving.wire.names import MODEL

BATCH = 8
"""Rows in one run of a component, unless the build gives another number (`--max-batch`)."""

CHECKED_HERE = frozenset({"build-files", "model-outdated", "backend-not-offered", "plan-version"})
"""Rules of `iblip lint` that repeat a check of this module."""


@dataclass(frozen=True, kw_only=True)
class BuildFindings:
    """The findings of one build.

    Attributes:
        directory: as it was given.
        name: of its checkpoint; `None` where the directory is not a build.
        here: findings on this machine.
        there: findings in the container; empty if there was none.
    """

    directory: Path
    name: str | None
    here: tuple[Finding, ...]
    there: tuple[Finding, ...] = ()


def findings_of_build(
    directory: Path, machine: Machine, container: Container | None = None
) -> BuildFindings:
    """Checks one build.

    If a container is given, the question is whether the build runs there: what is missing outside
    of it becomes a note.

    Args:
        directory: of the build; a directory that is not a build is reported as a problem.
        machine: this one.
        container: where the build will be served, if that is not here.
    """
    try:
        manifest = Manifest.read(directory)
        backends = triton_backends(directory, manifest)
    except MissingPackageError as error:
        return BuildFindings(directory=directory, name=manifest.name, here=(_unchecked(error),))
    except (IblipError, OSError) as error:
        return BuildFindings(directory=directory, name=None, here=(_not_a_build(error),))
    files = (*_check_files(directory, manifest), *_check_models(directory))
    files += (*_check_repository(directory, container),)
    files += (*check_permissions(directory, in_container=container is not None),)
    here = (*_check_components(manifest, backends, place_here(machine)),)
    here += (*_check_vllm(manifest, machine),)
    here += (*_check_memory(directory, manifest, machine),)
    here += (*_check_gpu_memory(manifest, machine),)
    here += (*_check_shared_memory(manifest, machine), _check_proof(directory, manifest))
    there: tuple[Finding, ...] = ()
    if container is not None:
        here = tuple(map(_as_note, here))
        there = (
            *_check_components(manifest, backends, place_of_container(container, machine)),
            *_check_packages(manifest, backends, container),
        )
    return BuildFindings(directory=directory, name=manifest.name, here=files + here, there=there)


def place_here(machine: Machine) -> Place:
    """This machine as a place where engines are loaded."""
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
    """A container that runs on this machine."""
    return Place(
        name=container.tag,
        gpus=machine.gpus,
        backends=container.backends,
        tensorrt=container.tensorrt,
        container=True,
    )


def triton_backends(directory: Path, manifest: Manifest) -> dict[str, str]:
    """The backend of Triton that each component's config names.

    Raises:
        ServingError: a config cannot be read, or names none.
    """
    backends = {}
    for name in manifest.components:
        model = MODEL if name == LANGUAGE_MODEL else name
        path = directory / REPOSITORY / model / "config.pbtxt"
        backend = backend_of(read_config(path))
        if not backend:
            raise ServingError(f"{path} names no backend. Rebuild with `iblip build`.")
        backends[name] = backend
    return backends


def _not_a_build(error: Exception) -> Finding:
    return Finding(
        title="build",
        verdict="problem",
        found=str(error),
        wanted="the directory of a build made by `iblip build`",
        remedy="Give the directory of a build, or rebuild it.",
    )


def _unchecked(error: MissingPackageError) -> Finding:
    return Finding(title="build", verdict="note", found=f"not checked. {error}")


def _as_note(finding: Finding) -> Finding:
    return finding if finding.verdict == "ok" else replace(finding, verdict="note")


def _check_files(directory: Path, manifest: Manifest) -> Iterator[Finding]:
    """Whether every file that serving opens is there, with the size that was built."""
    if LANGUAGE_MODEL not in manifest.components:
        yield Finding(
            title="components",
            verdict="problem",
            found=f"the manifest has no {LANGUAGE_MODEL}",
            wanted="a whole build",
            remedy="Build it again.",
        )
    files = files_of_build(manifest)
    faulty = [f"{path} ({fault})" for path, fault in faults(directory, files)]
    if faulty:
        yield Finding(
            title="files",
            verdict="problem",
            found=", ".join(faulty),
            wanted="every file of the manifest, as it was built",
            remedy="Copy the whole build again, with its links, or rebuild it.",
        )
    else:
        yield Finding(title="files", verdict="ok", found=f"all {len(files)} are there")


def _check_models(directory: Path) -> Iterator[Finding]:
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


def _check_repository(directory: Path, container: Container | None) -> Iterator[Finding]:
    """The errors that `iblip lint` finds, but for those that have checks of their own here."""
    server = PIP_SERVER if container is None else server_of_container(container.tag)
    try:
        diagnostics = lint(directory, server).diagnostics
    except IblipError as error:
        yield _not_a_build(error)
        return
    for one in diagnostics:
        if one.rule.severity == Severity.ERROR and one.rule.id not in CHECKED_HERE:
            yield Finding(
                title="repository",
                verdict="problem",
                found=f"{one.place}: {one.message}",
                wanted=one.rule.title.rstrip("."),
                remedy=one.rule.mend,
            )


def _check_components(
    manifest: Manifest, backends: Mapping[str, str], place: Place
) -> Iterator[Finding]:
    """Whether the place has each component's Triton backend and can load its engine."""
    for name, record in manifest.components.items():
        yield _check_backend(name, record.engine.kind, backends[name], place) or fit(
            name, record.engine, replace(place, python=backends[name] == "python")
        )


def _check_backend(title: str, kind: str, backend: str, place: Place) -> Finding | None:
    if backend == "tensorrt" and kind != "tensorrt":
        return Finding(
            title=title,
            verdict="problem",
            found=f"{kind}, in Triton's `tensorrt` backend",
            wanted="a plan built by TensorRT: the backend reads no other",
            remedy='Build with --engine tensorrt, or set `backend: "python"` in its config.',
        )
    if backend in place.backends:
        return None
    triton = f"Triton has {', '.join(place.backends)}" if place.backends else "no Triton here"
    return Finding(
        title=title,
        verdict="problem",
        found=f"{kind}, in Triton's `{backend}` backend; {triton}",
        wanted=f"a Triton with the backend `{backend}`",
        remedy=f"Serve it in {DEPLOYED.image} (docs/deploy.md)."
        if not place.container
        else f"Use a container that has it, such as {DEPLOYED.tag}.",
    )


def _check_packages(
    manifest: Manifest, backends: Mapping[str, str], container: Container
) -> Iterator[Finding]:
    """The packages that the container needs: NVIDIA's image has none of this project's."""
    kinds = {
        record.engine.kind
        for name, record in manifest.components.items()
        if backends[name] == "python"
    }
    runtime = ""
    if any(kind.startswith("onnxruntime-") for kind in kinds):
        runtime = " with onnxruntime-gpu and cuda-bindings (the extra runtime-gpu)"
    elif kinds & {"onnxruntime", OPENVINO}:
        runtime = " with onnxruntime, or onnxruntime-gpu"
    if OPENVINO in kinds:
        runtime += ", and openvino"
    yield Finding(
        title="Python models",
        verdict="note",
        found=f"Python {container.python} of {container.tag} needs this project{runtime}",
        remedy="The image built by deploy/Dockerfile has them."
        if OPENVINO not in kinds
        else "The image built by deploy/Dockerfile with EXTRA=runtime-openvino has them.",
    )
    if "vllm" in kinds:
        yield Finding(
            title="vLLM",
            verdict="note",
            found="the language model needs vLLM in an environment of its own; the Python of "
            f"{container.tag} has {container.vllm or 'none'}",
            remedy="Create it in the image with `iblip vllm install --package vllm`, and set "
            "IBLIP_VLLM_PYTHON to its path.",
        )


def _check_vllm(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    record = manifest.components.get(LANGUAGE_MODEL)
    kind = None if record is None else record.engine.kind
    if kind == "vllm" and (machine.vllm is None or machine.vllm.version is None):
        yield Finding(
            title="vLLM",
            verdict="problem",
            found="not installed, and the language model needs it",
            wanted="an environment with vLLM",
            remedy="`iblip vllm install` creates it.",
        )


def _check_memory(directory: Path, manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Whether serving the build fits into memory, where that can be estimated."""
    needed, free = memory_of_build(directory, manifest), machine.memory
    if needed is None or free is None:
        return
    if needed.most <= free:
        yield Finding(title="memory", verdict="ok", found=f"serving takes {needed}")
        return
    yield Finding(
        title="memory",
        verdict="warning",
        found=f"{size_text(free)} free",
        wanted=str(needed),
        remedy="It may not load. Serve it where there is more memory, or make the build smaller: "
        "`--precision language_model=int4`."
        if free < needed.least
        else "Use fewer slots or positions: `slots`, `max_length` in instructblip/config.pbtxt.",
    )


def _check_gpu_memory(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Whether what the build recorded fits the smallest GPU of this machine."""
    gpus = machine.driver.gpus if machine.driver else ()
    card = min((gpu.memory for gpu in gpus), default=None)
    plan = plan_of_build(manifest, card=card)
    if plan is None:
        return
    sizes = [f"{row.component} {size_text(row.total)}" for row in plan.components]
    if plan.position:
        slots = f"{plan.slots} slots of {plan.positions:,} positions"
        sizes.append(f"keys and values {size_text(plan.caches)} ({slots})")
    wanted = f"{size_text(plan.total)}: {', '.join(sizes)}"
    if card is None or plan.fits:
        yield Finding(
            title="GPU memory",
            verdict="ok" if plan.fits and card else "note",
            found=f"serving takes {wanted}",
        )
        return
    yield Finding(
        title="GPU memory",
        verdict="warning",
        found=f"{size_text(card)} in all",
        wanted=wanted,
        remedy=f"Build it with other options: {plan.advice()}",
    )


def _check_proof(directory: Path, manifest: Manifest) -> Finding:
    """What `iblip prove` has found of this very build."""
    record = record_of_build(directory)
    kinds = {entry.engine.kind for entry in manifest.components.values()}
    if record is None:
        if kinds == {"onnxruntime"}:  # compared on this engine when it was built
            return Finding(title="proof", verdict="ok", found="none, and none is needed on a CPU")
        return Finding(
            title="proof",
            verdict="note",
            found="nothing of this build has been compared on its own engines",
            remedy=f"Run `iblip prove {directory}`.",
        )
    if record.verdict == "failed":
        return Finding(
            title="proof",
            verdict="warning",
            found=record.summary,
            wanted="a build that answers here as it did when it was verified",
            remedy="Read proof/record.jsonl in the build; serve it on the CPU meanwhile "
            "(--engine onnxruntime).",
        )
    verdict: Verdict = "ok" if record.verdict == "passed" else "note"
    return Finding(title="proof", verdict=verdict, found=record.summary)


def _check_shared_memory(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Whether the tensors that the models of a busy server exchange fit into `/dev/shm`."""
    free = machine.shared_memory
    try:
        needed = tensors_in_flight(manifest)
    except ContractError as error:
        yield Finding(
            title="components",
            verdict="problem",
            found=str(error),
            wanted="graphs with the tensors of a build",
            remedy="Build it again.",
        )
        return
    if free is not None and free < needed:
        yield Finding(
            title="shared memory",
            verdict="warning",
            found=f"{size_text(free)} free",
            wanted=f"{size_text(needed)}: a batch of images, and the visual prompts of all "
            "requests that may run or wait",
            remedy="Make /dev/shm larger; in Docker with `--shm-size`.",
        )


def tensors_in_flight(manifest: Manifest) -> int:
    """Bytes of tensors between models when a server is full: a batch in each component, and the
    visual prompt of every request that runs or waits. An estimate: Triton's own blocks are left
    out."""
    limits = manifest.limits
    contracts = [manifest.components[name].graphs["model"].contract for name in COMPONENTS]
    batch = sum(_row_bytes(contract) for contract in contracts) * BATCH * limits.images
    prompt = _bytes(contracts[-1].output("visual_prompt")) * limits.images
    return batch + prompt * (limits.slots + limits.queue)


def _row_bytes(contract: Contract) -> int:
    return sum(map(_bytes, (*contract.inputs, *contract.outputs)))


def _bytes(spec: TensorSpec) -> int:
    """Bytes in one row of a tensor, with dynamic axes left out."""
    sizes = [axis for axis in spec.axes[1:] if isinstance(axis, int)]
    return math.prod(sizes) * spec.itemsize
