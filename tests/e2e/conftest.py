"""A real Triton server for each demo checkpoint, and the same build in this process to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.cases import FAMILIES
from tests.fixtures.serving import Served, served_build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def served_demo(demo_build: Callable[[str], Path]) -> Iterator[Callable[[str], Served]]:
    """`served_demo("instructblip-demo-vicuna")`: its server runs until all tests have run."""
    with ExitStack() as running:
        yield cache(lambda name: running.enter_context(served_build(demo_build(name))))


@pytest.fixture(scope="session", params=FAMILIES)
def served(request: pytest.FixtureRequest, served_demo: Callable[[str], Served]) -> Served:
    return served_demo(f"instructblip-demo-{request.param}")


@pytest.fixture
def url(served: Served) -> str:
    return served.url
