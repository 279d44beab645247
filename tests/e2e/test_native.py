"""Configs for Triton's own backends, given to a server that has none of them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from iblip.export.artifact.manifest import Manifest
from iblip.serving.repository.assembling import COMPONENTS, repository_from_engines
from iblip.serving.repository.native import ENGINES
from iblip.serving.server.log import why
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

PROFILES = {
    "vision_encoder": [{"batch": [1, 2, 8]}],
    "qformer": [{"batch": [1, 2, 8], "instruction": [1, 16, 128]}],
}


def native(build: Path, kind: str) -> Manifest:
    """The manifest, as if the components' engines were of another kind."""
    manifest = Manifest.read(build)
    components = dict(manifest.components)
    for name in COMPONENTS:
        engine = components[name].engine
        files, details = engine.files, {}
        if kind == "tensorrt":
            files = {"model": f"engines/{name}/model.plan"}
            (build / files["model"]).parent.mkdir(parents=True)
            (build / files["model"]).write_bytes(b"")  # nobody here reads plans
        if kind.endswith("tensorrt"):
            details = {"profiles": PROFILES[name]}
        changed = replace(engine, kind=kind, files=files, details=details)
        components[name] = replace(components[name], engine=changed)
    return replace(manifest, components=components)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_real_server_misses_the_backend_alone(kind, vicuna_build, tmp_path):
    build = tmp_path / "build"
    ignored = shutil.ignore_patterns("model_repository", "engines")
    shutil.copytree(vicuna_build, build, copy_function=os.link, ignore=ignored)
    repository = repository_from_engines(build, native(build, kind), backend="native")
    for name in set(repository.models) - set(COMPONENTS):
        shutil.rmtree(repository.path / name)

    options = ServerOptions(extra=("--exit-on-error=false", "--strict-readiness=false"))
    with TritonServer(repository.path, options) as server:
        log = server.log_path.read_text(encoding="utf-8", errors="replace")
    backend = "tensorrt" if kind == "tensorrt" else "onnxruntime"
    missing = f"unable to find backend library for backend '{backend}'"
    assert re.findall(r"Poll failed.*", log) == []
    told = why(log).splitlines()
    assert {line.partition(":")[0] for line in told} == set(COMPONENTS)
    assert all(missing in line for line in told), told
