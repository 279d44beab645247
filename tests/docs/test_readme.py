"""README.md: short, with a picture, and every command and line as it stands there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT, Reader, blocks_of, text_of

WORDS = 700
PICTURE = 60_000
"""Most bytes of the picture."""

TEN = 10
"""Most lines of the Python example, apart from empty ones."""

BLOCKS = list(blocks_of("README.md"))


def test_it_is_short() -> None:
    assert len(text_of("README.md").split()) <= WORDS
    (example,) = [block.code for block in BLOCKS if block.language == "python"]
    assert len([line for line in example.splitlines() if line]) <= TEN


def test_its_picture_is_there_and_small() -> None:
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", text_of("README.md"), re.DOTALL)
    assert 10_000 < (ROOT / path).stat().st_size <= PICTURE


@pytest.mark.e2e
@pytest.mark.timeout(7200)
def test_it_can_be_followed(reader: Reader) -> None:
    """Building, serving, asking, and the same in Python: the digit of the first image is a 3."""
    shell, _, python = BLOCKS
    assert shell.commands[0] == "make demo"
    assert reader.follow(shell).endswith("\n3\n")
    told = reader.follow(python).splitlines()
    assert "3" in told
    assert len(told[-1]) > len("3")
    assert (reader.home / "build/demo/manifest.json").is_file()
    assert (reader.home / "build/instructblip-demo-vicuna-fp16/manifest.json").is_file()
