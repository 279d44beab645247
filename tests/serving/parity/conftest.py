"""Builds with a weight that is not the checkpoint's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from iblip.export.graph.digest import digest_from_onnx


def damage(build: Path, names: Sequence[str]) -> None:
    """Halves these float32 weights in every file of the build that has them, as if they had been
    written so: the manifest has the digests of what is there."""
    left = set(names)
    for path in sorted(build.glob("graphs/*/*.onnx")):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.name in left:
                place = {entry.key: entry.value for entry in tensor.external_data}
                offset, count = int(place["offset"]), int(place["length"]) // 4
                file = path.parent / place["location"]
                values = np.memmap(file, np.float32, "r+", offset=offset, shape=(count,))
                values *= 0.5
                values.flush()
                left.remove(tensor.name)
    assert not left
    manifest = json.loads((build / "manifest.json").read_text())
    for component in manifest["components"].values():
        for graph in component["graphs"].values():
            graph["digest"] = digest_from_onnx(build / graph["path"])
    (build / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    """`damaged(build, "a.weight", …)`: a copy of the build in which these weights are halved."""

    def make(build: Path, *names: str) -> Path:
        copy = Path(shutil.copytree(build, tmp_path / "damaged"))
        damage(copy, names)
        return copy

    return make
