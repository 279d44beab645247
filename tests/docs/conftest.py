"""A directory like a clone, in which pages are followed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.docs.pages import ROOT, Block, Reader

DEMO = Block(
    page="docs/index.md", line=0, language="sh", code="iblip build --output build/demo", needs=""
)
"""What docs/index.md promises to be there."""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a clone after `make setup`, with the names that docs/index.md explains."""
    directory = tmp_path_factory.mktemp("clone")
    (directory / ".venv").symlink_to(sys.prefix)
    for folder in ("checkpoints", "export"):  # the latter for `python -m export`
        (directory / folder).symlink_to(ROOT / folder)
    images = sorted((ROOT / "checkpoints/heldout/images").glob("*.webp"))
    (directory / "photos").mkdir()
    for path in images[:4]:
        with Image.open(path) as image:
            image.save(directory / "photos" / f"{path.stem}.png")
    with Image.open(images[0]) as image:
        image.save(directory / "image.png")
        image.convert("RGB").save(directory / "photo.jpg", quality=95)
    Reader(directory).follow(DEMO)
    return directory


@pytest.fixture
def reader(home: Path) -> Iterator[Reader]:
    reader = Reader(home)
    yield reader
    reader.stop()
