"""Whether an engine that was built somewhere loads somewhere else, and why not.

It compares two records: of the engine (`EngineRecord`), and of the place (`Place`), which is this
machine or one of NVIDIA's containers. Nothing is loaded here, and no machine is probed.

TensorRT's rules are those of its documentation (11.1, "Engine Compatibility"; 11.4, "Support
Matrix"): a plan loads in the version that built it; a version-compatible one also in later versions
of the same major one, and 10 in 11, 8 in 10; and on the kind of GPU that it was built for, unless
built for several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iblip.engines.hardware.findings import Finding
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.system.installing import install_command

VERSION_COMPATIBLE = "version-compatible"
"""Flag of a plan that later versions of TensorRT also load (`EngineRecord.details["flags"]`)."""

AMPERE_PLUS = "hardware-compatible=ampere-plus"
"""Flag of a plan that runs on any GPU from Ampere (`sm80`) on."""

TRITON_FLAG = "--backend-config=tensorrt,version-compatible=true"
"""The option of Triton that lets it load version-compatible plans."""

ACROSS = frozenset({(8, 10), (10, 11)})
"""Pairs of major versions: of a version-compatible plan, and of a later TensorRT that loads it."""

PROVIDER_TENSORRT = 10
"""The major version of TensorRT that the TensorRT provider of `onnxruntime-gpu` 1.31 links to
(`libnvinfer.so.10`), whatever TensorRT is installed."""

GPU_KINDS = frozenset(
    {
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "onnxruntime-tensorrt-rtx",
        "tensorrt",
        "tensorrt-rtx",
    }
)
"""Engines that run on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an engine would be loaded.

    Attributes:
        name: for messages.
        gpus: compute capability of each GPU, `sm89`; empty if there is none.
        backends: of its Triton; empty if it has no Triton.
        tensorrt: version of its TensorRT libraries; `None` if it has none.
        tensorrt_rtx: version of its TensorRT-RTX libraries; `None` if it has none.
        python: whether the engine runs in a Python model or in this process. Otherwise it runs in a
            backend of Triton, which brings its own libraries.
        container: whether this is a container. It gets its GPUs from the machine that runs it, and
            its Python packages from a Dockerfile.
        obstacle: takes an engine kind; returns what keeps this Python from running it, and what to
            do, or `None` if nothing does. It is not called for a container.
    """

    name: str
    gpus: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    python: bool = True
    container: bool = False
    obstacle: Callable[[str], str | None] = lambda kind: None


@dataclass(frozen=True, kw_only=True)
class _Fault:
    wanted: str
    remedy: str


def fit(title: str, engine: EngineRecord, place: Place) -> Finding:
    """Checks whether a place can load a component's engine.

    Args:
        title: of the finding.
        engine: the record in the build's manifest.
        place: where the engine would be loaded.

    Returns:
        `ok`; `note` if it depends on what a record cannot tell; or `problem`.
    """
    description = describe(engine)
    for rule in RULES.get(engine.kind, ()):
        fault = rule(engine, place)
        if fault is not None:
            return Finding(
                title=title,
                verdict="problem",
                found=description,
                wanted=fault.wanted,
                remedy=fault.remedy,
            )
    note = _write_note(engine, place)
    return Finding(title=title, verdict="note" if note else "ok", found=description, remedy=note)


def describe(engine: EngineRecord) -> str:
    """Describes an engine in words: its library, version, and the GPUs that it was built for."""
    details = engine.details
    if "version" not in details:
        return engine.kind
    words = [f"{engine.kind} plan by version {details['version']}"]
    if details.get("targets"):
        words.append(f"for {', '.join(details['targets'])}")
    if details.get("flags"):
        words.append(f"({', '.join(details['flags'])})")
    return " ".join(words)


def loads_version(plan: str, library: str, flags: tuple[str, ...] = ()) -> bool:
    """Whether a TensorRT of one version loads a plan of another.

    Args:
        plan: version that built it (`11.1.0.106`); `11.1` stands for every 11.1.
        library: version that would load it.
        flags: the flags that it was built with.
    """
    built, installed = numbers(plan), numbers(library)
    if all(a == b for a, b in zip(built, installed, strict=False)):
        return True
    if VERSION_COMPATIBLE not in flags:
        return False
    return (built[0], installed[0]) in ACROSS or (built[0] == installed[0] and built < installed)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: `2.13.0+cpu` is `(2, 13, 0)`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else (0,)


def _flags(engine: EngineRecord) -> tuple[str, ...]:
    return tuple(engine.details.get("flags", ()))


def _check_python(engine: EngineRecord, place: Place) -> _Fault | None:
    obstacle = place.obstacle(engine.kind) if place.python and not place.container else None
    if obstacle is None:
        return None
    return _Fault(wanted=f"the Python packages that run {engine.kind}", remedy=obstacle)


def _check_container_libraries(engine: EngineRecord, place: Place) -> _Fault | None:
    if not place.container:
        return None
    packages = {
        "onnxruntime-tensorrt-rtx": "onnxruntime-ep-nv-tensorrt-rtx-cu12",
        "tensorrt-rtx": "the package tensorrt-rtx of the version that built the plan",
    }[engine.kind]
    return _Fault(
        wanted="TensorRT-RTX, which neither Triton nor NVIDIA's container has; Triton's `tensorrt` "
        "backend does not read its plans",
        remedy=f"Add {packages} to deploy/Dockerfile, or build with --engine tensorrt or "
        "onnxruntime-cuda.",
    )


def _check_tensorrt_version(engine: EngineRecord, place: Place) -> _Fault | None:
    if place.tensorrt is None:
        return _Fault(
            wanted="TensorRT",
            remedy="Use a container that has it (`iblip doctor --container`)."
            if place.container
            else f"Serve it in NVIDIA's container, or run `{install_command('tensorrt')}`.",
        )
    plan = str(engine.details.get("version", "0"))
    if loads_version(plan, place.tensorrt, _flags(engine)):
        return None
    flag = f"--builder-flag {VERSION_COMPATIBLE}"
    later = numbers(plan) < numbers(place.tensorrt)
    also = f" (or with {plan} and {flag})" if later else f" (or, with {flag}, an earlier one)"
    return _Fault(
        wanted=f"a plan that TensorRT {place.tensorrt} loads: of that version, or "
        "of an earlier one and version-compatible",
        remedy=f"Build it again with TensorRT {place.tensorrt}{also}: "
        "`iblip build --engine tensorrt`.",
    )


def _check_rtx_version(engine: EngineRecord, place: Place) -> _Fault | None:
    plan = str(engine.details.get("version", "0"))
    if place.container or place.tensorrt_rtx is None or loads_version(plan, place.tensorrt_rtx):
        return None
    return _Fault(
        wanted=f"a plan by TensorRT-RTX {place.tensorrt_rtx}, the version that is installed here",
        remedy="Build it again with --engine tensorrt-rtx.",
    )


def _check_provider_tensorrt(engine: EngineRecord, place: Place) -> _Fault | None:
    if not (place.container and place.python):
        return None
    if place.tensorrt is not None and numbers(place.tensorrt)[0] == PROVIDER_TENSORRT:
        return None
    return _Fault(
        wanted=f"TensorRT {PROVIDER_TENSORRT}, which ONNX Runtime's TensorRT provider of "
        f"onnxruntime-gpu links to; the container has {place.tensorrt or 'none'}",
        remedy="Build with --engine onnxruntime-cuda or tensorrt, or serve it with Triton's own "
        "onnxruntime backend.",
    )


def _check_gpu(engine: EngineRecord, place: Place) -> _Fault | None:
    targets = tuple(engine.details.get("targets", ()))
    if not place.gpus:
        if place.container:
            return None
        family = f" of {', '.join(targets)}" if targets else ""
        return _Fault(
            wanted=f"an NVIDIA GPU{family}",
            remedy="Serve it on a machine that has one, or build with --engine onnxruntime.",
        )
    if any(_runs_on(engine, gpu) for gpu in place.gpus):
        return None
    return _Fault(
        wanted=f"a plan for {', '.join(place.gpus)}, as found here",
        remedy=f"Build it again with --target {','.join(dict.fromkeys(place.gpus))}.",
    )


def _runs_on(engine: EngineRecord, gpu: str) -> bool:
    targets = engine.details.get("targets")
    if AMPERE_PLUS in _flags(engine) and int(gpu.removeprefix("sm")) >= 80:
        return True
    return not targets or gpu in targets


def _write_note(engine: EngineRecord, place: Place) -> str | None:
    """What a user should know of an engine that can be loaded."""
    notes = []
    if VERSION_COMPATIBLE in _flags(engine) and engine.kind == "tensorrt":
        notes.append(f"Triton needs {TRITON_FLAG}; `iblip serve` gives it.")
    if engine.kind in GPU_KINDS and not place.gpus:
        targets = engine.details.get("targets")
        family = f" of {', '.join(targets)}" if targets else ""
        notes.append(f"The machine that runs it needs an NVIDIA GPU{family}; this one has none.")
    elif "version" in engine.details and not engine.details.get("targets"):
        notes.append("It was built for the GPU of the machine that built it.")
    return " ".join(notes) or None


Rule = Callable[[EngineRecord, Place], _Fault | None]

RULES: Mapping[str, tuple[Rule, ...]] = {
    "onnxruntime": (_check_python,),
    "onnxruntime-cuda": (_check_gpu, _check_python),
    "onnxruntime-tensorrt": (_check_gpu, _check_provider_tensorrt, _check_python),
    "onnxruntime-tensorrt-rtx": (_check_gpu, _check_container_libraries, _check_python),
    "tensorrt": (_check_gpu, _check_tensorrt_version),
    "tensorrt-rtx": (_check_gpu, _check_container_libraries, _check_rtx_version, _check_python),
    "openvino": (_check_python,),
    "vllm": (),
}
"""Engine kind to the rules that must hold, in the order in which they are checked."""
