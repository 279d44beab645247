"""The checkout stays small: only demo checkpoints have large files, and few of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MB = 1_000_000
MOST_OF_ALL = 52 * MB
MOST_OF_ONE = 1 * MB
"""Of a file outside of `checkpoints/`."""


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Bytes of every tracked file, by its path."""
    if not (ROOT / ".git").exists():
        pytest.skip(f"{ROOT} is not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    return {name: (ROOT / name).lstat().st_size for name in names if os.path.lexists(ROOT / name)}


def test_only_checkpoints_have_large_files(sizes: dict[str, int]) -> None:
    large = {
        name: size
        for name, size in sizes.items()
        if size > MOST_OF_ONE and not name.startswith("checkpoints/")
    }
    assert large == {}


def test_all_files_together_are_small(sizes: dict[str, int]) -> None:
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:10]
    assert sum(sizes.values()) <= MOST_OF_ALL, f"the largest: {largest}"
