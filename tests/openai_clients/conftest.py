"""A demo behind a real Triton and the gateway, and the environment of other people's clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.aiperf import VARIABLE
from iblip.serving.gateway.token_texts import TokenTexts
from tests.fixtures.serving import Served, served_build
from tests.serving.gateway.running import Gateway, gateway

MODEL = "instructblip-demo-vicuna"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.openai_clients)


@pytest.fixture(scope="session")
def commands() -> Path:
    """The folder of the environment's commands, which `make test-openai-clients` makes."""
    return Path(os.environ[VARIABLE])


@pytest.fixture(scope="session")
def served(vicuna_build: Path) -> Iterator[Served]:
    with served_build(vicuna_build) as served:
        yield served


@pytest.fixture(scope="session")
def url(served: Served) -> str:
    return served.url


@pytest.fixture(scope="session")
def running(served: Served) -> Iterator[Gateway]:
    tokens = TokenTexts.from_file(served.build / served.manifest.text.tokenizer)
    with gateway(served.url, name=MODEL, tokens=tokens) as running:
        yield running
