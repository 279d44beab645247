"""What tests of several rooms share: real builds of the demo checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint import DEMO
from serving.build import BuildOptions, build
from serving.cli.quiet import quiet_libraries

EXAMPLES = 24
"""Held-out examples that a test build is verified with: all 500 are the benchmarks' business."""


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """The directory of the demo checkpoints."""
    return DEMO.parent


@pytest.fixture(scope="session")
def vicuna_build(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified fp32 build of the LLaMA demo."""
    return _build(checkpoints / "instructblip-demo-vicuna", tmp_path_factory.mktemp("builds"))


@pytest.fixture(scope="session")
def flant5_build(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified fp32 build of the T5 demo."""
    return _build(checkpoints / "instructblip-demo-flant5", tmp_path_factory.mktemp("builds"))


def _build(model: Path, parent: Path) -> Path:
    quiet_libraries()
    return build(BuildOptions(model=model, output=parent / model.name, limit=EXAMPLES))
