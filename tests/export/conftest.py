"""Tiny checkpoints with random weights: right in every shape, and quick to trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

KINDS = {"vicuna": "wide-llama", "flant5": "t5"}
"""What `tests.fixtures.checkpoints` calls those that the tests of this folder name otherwise."""


@pytest.fixture(scope="session")
def tiny(random_checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """The tiny checkpoint of a kind, made once: `vicuna`, `flant5`, or any other of
    `tests.fixtures.checkpoints`, whose traces are thus those of other folders' tests."""
    return lambda kind: random_checkpoint(KINDS.get(kind, kind))


@pytest.fixture
def tiny_copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A tiny checkpoint of the test's own, to damage."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(tiny(kind), tmp_path / f"copy-{kind}"))

    return copy
