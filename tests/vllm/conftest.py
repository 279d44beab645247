"""The LLaMA demo on vLLM behind a real Triton, and on ONNX Runtime in this process to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iblip.engines.evaluation.texts import on_onnxruntime
from iblip.engines.language_model.vllm.environment import VARIABLE, find_python
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, EngineOptions, VerificationOptions
from iblip.serving.cli.quiet import quiet_libraries
from iblip.serving.client import Answer, Client, GenerationOptions
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

EXAMPLES = 24


@dataclass(frozen=True)
class Reference:
    """The same weights on ONNX Runtime, in this process."""

    manifest: Manifest
    pipeline: Pipeline

    def answer(self, image: Path, prompt: str, options: GenerationOptions | None = None) -> Answer:
        pixels = pixels_from_image(image, self.manifest.preprocessing)
        return self.pipeline.answer(pixels, prompt, options)


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """`make test-vllm` makes it; without it there is nothing to test, and that is said."""
    return find_python()


@pytest.fixture(scope="session")
def vllm_build(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_libraries()
    return build(
        BuildOptions(
            source=ModelSource(model=str(checkpoints / "instructblip-demo-vicuna")),
            output=tmp_path_factory.mktemp("builds") / "vllm",
            engines=EngineOptions(llm_engine="vllm"),
            verification=VerificationOptions(limit=EXAMPLES),
        )
    )


@pytest.fixture(scope="session")
def reference(vllm_build: Path) -> Iterator[Reference]:
    manifest = on_onnxruntime(Manifest.read(vllm_build))
    with Pipeline(vllm_build, manifest=manifest) as pipeline:
        yield Reference(manifest, pipeline)


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
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="session")
def examples(checkpoints: Path) -> list[Example]:
    return read_examples(checkpoints / "heldout")


@pytest.fixture
def picture(examples: list[Example]) -> Path:
    return examples[0].image
