"""Whether an engine that was built somewhere loads somewhere else, and why not.

Works on records: of the engine (`EngineRecord`), and of the place (`Place`), which is this machine
or one of NVIDIA's containers. Nothing is loaded here; what a machine has is asked elsewhere.

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

VERSION_COMPATIBLE = "version-compatible"
"""The flag of a plan that later versions of TensorRT load (`EngineRecord.details["flags"]`)."""

AMPERE_PLUS = "hardware-compatible=ampere-plus"
"""The flag of a plan that runs on any GPU from Ampere (`sm80`) on."""

TRITON_FLAG = "--backend-config=tensorrt,version-compatible=true"
"""What Triton is started with, to load plans that are version-compatible."""

ACROSS = frozenset({(8, 10), (10, 11)})
"""Major versions of a version-compatible plan and of a later TensorRT that loads it."""

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
        name: for people.
        gpus: compute capability of each, `sm89`; empty where there is none.
        backends: of its Triton; empty where it has no Triton.
        tensorrt: version of its TensorRT libraries; `None` where it has none.
        tensorrt_rtx: the same of TensorRT-RTX.
        python: whether the engine runs in a Python model, or in this process; a backend of Triton's
            own brings its own libraries.
        container: whether this is a container, which gets its GPUs from the machine it is run on,
            and its Python packages from a Dockerfile.
        obstacle: engine kind to what keeps its Python from running it, and what to do; `None` if
            nothing does. Of a container nothing is asked.
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
    """Whether a place can load a component's engine.

    Args:
        title: of the finding.
        engine: as the build's manifest has it.
        place: see `Place`.

    Returns:
        `ok`, `note` where it depends on what a record cannot tell, or `problem`.
    """
    found = describe(engine)
    for rule in RULES.get(engine.kind, ()):
        fault = rule(engine, place)
        if fault is not None:
            return Finding(
                title=title,
                verdict="problem",
                found=found,
                wanted=fault.wanted,
                remedy=fault.remedy,
            )
    note = _note(engine, place)
    return Finding(title=title, verdict="note" if note else "ok", found=found, remedy=note)


def describe(engine: EngineRecord) -> str:
    """An engine in words: its library, its version, and the GPUs that it was built for."""
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
        plan: version that built it (`11.1.0.106`); as far as it goes, it must be the library's.
        library: version that would load it.
        flags: that it was built with.
    """
    built, has = numbers(plan), numbers(library)
    if all(a == b for a, b in zip(built, has, strict=False)):
        return True
    if VERSION_COMPATIBLE not in flags:
        return False
    return (built[0], has[0]) in ACROSS or (built[0] == has[0] and built < has)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: `2.13.0+cpu` is `(2, 13, 0)`."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else (0,)


def _flags(engine: EngineRecord) -> tuple[str, ...]:
    return tuple(engine.details.get("flags", ()))


def _runs_in_python(engine: EngineRecord, place: Place) -> _Fault | None:
    obstacle = place.obstacle(engine.kind) if place.python and not place.container else None
    if obstacle is None:
        return None
    return _Fault(wanted=f"what runs {engine.kind}", remedy=obstacle)


def _own_libraries(engine: EngineRecord, place: Place) -> _Fault | None:
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


def _tensorrt_version(engine: EngineRecord, place: Place) -> _Fault | None:
    if place.tensorrt is None:
        return _Fault(
            wanted="TensorRT",
            remedy="Use a container that has it (`iblip doctor --container`)."
            if place.container
            else "Serve it in NVIDIA's container, or run `pip install 'iblip[gpu]'`.",
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
        "`export build --engine tensorrt`.",
    )


def _rtx_version(engine: EngineRecord, place: Place) -> _Fault | None:
    plan = str(engine.details.get("version", "0"))
    if place.container or place.tensorrt_rtx is None or loads_version(plan, place.tensorrt_rtx):
        return None
    return _Fault(
        wanted=f"a plan by TensorRT-RTX {place.tensorrt_rtx}, which is what is here",
        remedy="Build it again with --engine tensorrt-rtx.",
    )


def _provider_tensorrt(engine: EngineRecord, place: Place) -> _Fault | None:
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


def _gpu(engine: EngineRecord, place: Place) -> _Fault | None:
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
        wanted=f"a plan for {', '.join(place.gpus)}, which is what is here",
        remedy=f"Build it again with --target {','.join(dict.fromkeys(place.gpus))}.",
    )


def _runs_on(engine: EngineRecord, gpu: str) -> bool:
    targets = engine.details.get("targets")
    if AMPERE_PLUS in _flags(engine) and int(gpu.removeprefix("sm")) >= 80:
        return True
    return not targets or gpu in targets


def _note(engine: EngineRecord, place: Place) -> str | None:
    """What is worth knowing of an engine that can be loaded."""
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
    "onnxruntime": (_runs_in_python,),
    "onnxruntime-cuda": (_gpu, _runs_in_python),
    "onnxruntime-tensorrt": (_gpu, _provider_tensorrt, _runs_in_python),
    "onnxruntime-tensorrt-rtx": (_gpu, _own_libraries, _runs_in_python),
    "tensorrt": (_gpu, _tensorrt_version),
    "tensorrt-rtx": (_gpu, _own_libraries, _rtx_version, _runs_in_python),
    "vllm": (),
}
"""Engine kind to what must hold, in the order in which it is asked."""
