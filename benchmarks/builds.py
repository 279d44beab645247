"""Build time and peak memory, by model and precision; with and without verification."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from benchmarks.measure import run
from benchmarks.server_process import ROOT, python_of

PRECISIONS = ("fp32", "fp16")


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Figures by precision: the build alone, the build with its proof, and bytes on disk."""
    figures: dict[str, Any] = {}
    for precision in PRECISIONS:
        output = scratch / f"{checkpoint.name}-{precision}"
        build = ["iblip", "export", "build", "--model", str(checkpoint), "--precision", precision]
        bare = run([*build, "--output", str(output), "--no-verify"])
        proven = run([*build, "--output", str(output)])
        figures[precision] = {
            "build": bare.to_json(),
            "build_and_verify": proven.to_json(),
            "new_bytes": _new_bytes(output),
            "checkpoint_bytes": (checkpoint / "model.safetensors").stat().st_size,
        }
    return figures


def build(checkpoint: Path, scratch: Path, precision: str = "fp32") -> Path:
    """The build of `checkpoint` in `scratch`, made now unless another benchmark has made it."""
    output = scratch / f"{checkpoint.name}-{precision}"
    if not output.exists():
        options = ["--precision", precision, "--output", str(output), "--no-verify"]
        run(["iblip", "export", "build", "--model", str(checkpoint), *options])
    return output


def build_of(checkout: Path, checkpoint: Path, scratch: Path) -> Path:
    """A build by a checkout's own code: a server takes those of its own version."""
    if checkout.resolve() == ROOT:
        return build(checkpoint, scratch)
    output = scratch / f"{checkpoint.name}-before"
    if not output.exists():
        options = ["--output", str(output.resolve()), "--no-verify"]
        model = str(checkpoint.resolve())
        command = python_of(checkout, "export", "build", "--model", model, *options)
        subprocess.run(**command, check=True, stdout=subprocess.DEVNULL)  # type: ignore[call-overload]
    return output


def _new_bytes(directory: Path) -> int:
    """Bytes that the build added to the disk: files with one name only."""
    stats = [path.lstat() for path in directory.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
