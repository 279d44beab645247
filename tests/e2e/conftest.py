"""A real Triton server for each demo checkpoint, and the same build in this process to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Answer, Client, GenerationOptions
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

FAMILIES = ("vicuna", "flant5")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass(frozen=True)
class Served:
    """A build, its server, and the same build in this process."""

    build: Path
    manifest: Manifest
    server: TritonServer
    pipeline: Pipeline

    @property
    def url(self) -> str:
        return self.server.grpc_url

    @property
    def long(self) -> GenerationOptions:
        """An answer about as long as the model can; prompts take the rest."""
        facts = self.manifest.language_model
        return self.wild((facts.max_length - facts.num_query_tokens) * 9 // 10)

    @staticmethod
    def wild(length: int, **options: Any) -> GenerationOptions:
        """So many tokens, of all kinds: kept from its end, a model may greedily say nothing."""
        return GenerationOptions(
            min_new_tokens=length, max_new_tokens=length, temperature=5.0, seed=length, **options
        )

    def in_process(
        self, image: Path, prompt: str, options: GenerationOptions | None = None
    ) -> Answer:
        pixels = pixels_from_image(image, self.manifest.preprocessing)
        return self.pipeline.answer(pixels, prompt, options)


@pytest.fixture(scope="session", params=FAMILIES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    build = request.getfixturevalue(f"{request.param}_build")
    with Pipeline(build) as pipeline, TritonServer(build / REPOSITORY) as server:
        yield Served(build, Manifest.read(build), server, pipeline)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture(scope="session")
def examples(checkpoints: Path) -> list[Example]:
    return read_examples(checkpoints / "heldout")


@pytest.fixture
def picture(examples: list[Example]) -> Path:
    return examples[0].image
