"""The LLaMA demo on vLLM behind a real Triton, and on ONNX Runtime in this process to compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iblip.engines.evaluation.texts import on_onnxruntime
from iblip.engines.language_model.vllm.environment import VARIABLE, find_python
from iblip.export.artifact.manifest import Manifest
from iblip.serving.builder.options import EngineOptions
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer
from tests.fixtures.builds import verified_build
from tests.fixtures.serving import InProcess, opened


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """`make test-vllm` makes it; without it there is nothing to test, and that is said."""
    return find_python()


@pytest.fixture(scope="session")
def vllm_build(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("builds") / "vllm"
    engines = EngineOptions(llm_engine="vllm")
    return verified_build(checkpoints / "instructblip-demo-vicuna", directory, engines=engines)


@pytest.fixture(scope="session")
def reference(vllm_build: Path) -> Iterator[InProcess]:
    """The same weights on ONNX Runtime."""
    with opened(vllm_build, on_onnxruntime(Manifest.read(vllm_build))) as reference:
        yield reference


@pytest.fixture
def serve(vllm_build: Path, vllm_python: Path) -> TritonServer:
    """A server of the test's own, not started yet."""
    return _server(vllm_build, vllm_python)


@pytest.fixture(scope="session")
def server(vllm_build: Path, vllm_python: Path) -> Iterator[TritonServer]:
    with _server(vllm_build, vllm_python) as server:
        yield server


def _server(directory: Path, python: Path) -> TritonServer:
    options = ServerOptions(environment={VARIABLE: str(python)})
    return TritonServer(directory / REPOSITORY, options)


@pytest.fixture
def url(server: TritonServer) -> str:
    return server.grpc_url
