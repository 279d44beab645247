"""Runs the stages of a proof, each in a process of its own, and writes the record."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iblip.engines.hardware.nvidia import Driver, find_driver
from iblip.engines.proofs import drop_proof, is_stub, keep_proof, key_here
from iblip.export.artifact.manifest import MANIFEST, Manifest
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean
from iblip.export.system.files import sha256
from iblip.serving.proving.record import FORMAT, RECORD, Record, Verdict, Writer
from iblip.serving.proving.stages import STAGES

STAGE_S = 900.0
"""Default number of seconds after which a stage is stopped: a GPU that hangs does not say so."""

WORKER = "iblip.serving.proving.worker"

ENOUGH = 4
"""Questions of a way that a proof compares at least."""

Tell = Callable[[Mapping[str, Any]], None]
"""Called with every line of the record as it is written."""


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """What of a build is proven.

    Attributes:
        stages: names of `STAGES`; empty is all.
        limit: most questions of each way; `None` is all that the build holds.
        record: the record's file; `None` is in the build, `proof/record.jsonl`.
        torch: whether `speed` may measure torch beside the build, where it is installed.
        stage_s: seconds after which a stage is stopped.

    Raises:
        OptionError: there is no such stage, the limit is below 1, or a stage has no time.
    """

    stages: tuple[str, ...] = ()
    limit: int | None = None
    record: Path | None = None
    torch: bool = True
    stage_s: float = STAGE_S

    def __post_init__(self) -> None:
        if not self.stage_s > 0:
            raise OptionError(f"stage_s is {self.stage_s}; expected more than 0 seconds")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; expected 1 or more")
        for name in self.stages:
            if name not in STAGES:
                hint, known = did_you_mean(name, STAGES), ", ".join(STAGES)
                raise OptionError(f"--stage {name}: there is no such stage.{hint} Stages: {known}")


def prove(directory: Path, options: ProofOptions, tell: Tell) -> Record:
    """Proves a build on this machine, with its own engines.

    A proof that is whole is kept for `--engine auto`; one that fails is forgotten there.

    Args:
        directory: of the build.
        options: what to run.
        tell: gets each line as it is written.

    Returns:
        The record, as it lies in its file.

    Raises:
        BuildDirectoryError: the directory is not a build.
        OptionError: the record cannot be written.
    """
    manifest, driver = Manifest.read(directory), find_driver()
    path = options.record or directory / RECORD
    head = _head(directory, manifest, driver, options)
    started, lines = time.monotonic(), []
    with Writer(path) as writer:

        def write(line: Mapping[str, Any]) -> None:
            writer.write(line)
            lines.append(json.dumps(line))
            tell(line)

        write(head)
        for name in STAGES:
            if not options.stages or name in options.stages:
                for line in _run_stage(directory, name, options, stubs=head["stubs"]):
                    write(line)
        record = Record.from_lines(lines)
        verdict, proven, reason = _judge(record, manifest)
        seconds = round(time.monotonic() - started, 1)
        write({"verdict": verdict, "proven": proven, "reason": reason, "seconds": seconds})
    record = Record.from_lines(lines)
    _remember(record, manifest, driver)
    return record


def _head(
    directory: Path, manifest: Manifest, driver: Driver | None, options: ProofOptions
) -> dict[str, Any]:
    engines = {name: entry.engine.kind for name, entry in manifest.components.items()}
    key = key_here(engines, manifest.precision, driver)
    gpu = driver.gpus[0] if driver and driver.gpus and key.architecture != "cpu" else None
    return {
        "format": FORMAT,
        "build": manifest.name,
        "family": manifest.family,
        "synthetic": manifest.synthetic,
        "manifest": sha256(directory / MANIFEST),
        "engines": engines,
        "precision": dict(manifest.precision),
        "gpu": asdict(gpu) if gpu else None,
        "driver": key.driver,
        "cuda": driver.cuda if driver and gpu else "",
        "stubs": gpu is not None and is_stub(gpu.name),
        "versions": dict(key.versions),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "limit": options.limit,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _run_stage(
    directory: Path, name: str, options: ProofOptions, *, stubs: bool
) -> Iterator[dict[str, Any]]:
    """The lines of a stage, each as soon as its process writes it; the last one is its end."""
    read, write = os.pipe()
    job = {
        "build": str(directory),
        "stage": name,
        "limit": options.limit,
        "torch": options.torch,
        "stubs": stubs,
        "descriptor": write,
    }
    started = time.monotonic()
    # What libraries print goes to standard error: standard output is for the record.
    process = subprocess.Popen(
        [sys.executable, "-m", WORKER, json.dumps(job)],
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stdout=2,
    )
    os.close(write)
    end: dict[str, Any] | None = None
    watch = _stop_after(process, options.stage_s)
    try:
        with os.fdopen(read, encoding="utf-8") as lines:
            for text in lines:
                with suppress(ValueError):  # a process that was killed while it wrote
                    line = json.loads(text)
                    end = line if "ended" in line else None
                    yield line
        process.wait()
    finally:
        watch()
        if process.poll() is None:
            process.kill()
            process.wait()
    if end is None:
        yield {
            "stage": name,
            "ended": "failed",
            "reason": _describe_end(
                process.returncode, time.monotonic() - started, options.stage_s
            ),
            "seconds": round(time.monotonic() - started, 2),
        }


def _stop_after(process: subprocess.Popen[bytes], seconds: float) -> Callable[[], None]:
    """Kills a process that runs longer; returns what calls that off."""
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer.cancel


def _describe_end(status: int, seconds: float, most: float) -> str:
    """Why a stage's process ended before its stage, in words."""
    if seconds >= most:
        return f"it did not end within {most:g} s and was stopped"
    if status < 0:
        return f"its process was ended by signal {-status}; what it said is on standard error"
    return f"its process ended with status {status}; what it said is on standard error"


def _judge(record: Record, manifest: Manifest) -> tuple[Verdict, bool, str]:
    """The verdict, whether `--engine auto` may rely on it, and why."""
    failures = record.failures
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        return "failed", False, f"{failures[0].rstrip('.')}{more}."
    if record.head["stubs"]:
        return "stubs", False, "Stub libraries pose as the GPU: it ran, and nothing was computed."
    missing = [
        name
        for name, stage in STAGES.items()
        if stage.required and not _is_enough(record.stages.get(name), name, manifest)
    ]
    if missing:
        return (
            "passed",
            False,
            f"It is no proof for --engine auto: {', '.join(missing)} compared nothing.",
        )
    if manifest.synthetic:
        return "passed", False, "It is no proof for --engine auto: the weights are random."
    if record.head["limit"] is not None and record.head["limit"] < ENOUGH:
        return "passed", False, f"It is no proof for --engine auto: --limit was below {ENOUGH}."
    return "passed", True, "Every stage is within its limits."


def _is_enough(stage: Mapping[str, Any] | None, name: str, manifest: Manifest) -> bool:
    if name == "images" and manifest.limits.images == 1:
        return True
    if name == "placement" and stage is not None and stage["ended"] == "skipped":
        return True  # no component runs on ONNX Runtime
    return stage is not None and stage["ended"] == "done"


def _remember(record: Record, manifest: Manifest, driver: Driver | None) -> None:
    """Keeps a proof for `--engine auto`, or forgets one that no longer holds."""
    key = key_here(record.head["engines"], manifest.precision, driver)
    if record.proven:
        gpu = record.head["gpu"]
        keep_proof(
            key,
            {
                "build": manifest.name,
                "gpu": gpu["name"] if gpu else "CPU",
                "created": record.head["created"],
            },
        )
    elif record.verdict == "failed":
        drop_proof(key)
