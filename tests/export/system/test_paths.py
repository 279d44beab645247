"""Paths as callers give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from iblip.export.errors import OptionError
from iblip.export.system.paths import path_from, settle_paths


@dataclass(frozen=True)
class Options:
    output: Path | None = None

    def __post_init__(self):
        settle_paths(self, "output")


class Like:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("value", ["a/b", Path("a/b"), Like("a/b")])
def test_strings_and_whatever_is_like_a_path_are_paths(value):
    assert path_from(value, "output") == Path("a/b")
    assert Options(value) == Options(Path("a/b"))
    assert isinstance(Options(value).output, Path)
    assert Options().output is None


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert path_from("~/a", "output") == Path("/home/someone/a")
    assert path_from(Path("~"), "output") == Path("/home/someone")
    assert path_from("~nobody-of-that-name/a", "output") == Path("~nobody-of-that-name/a")
    assert path_from("a/~", "output") == Path("a/~")


@pytest.mark.parametrize("value", [b"a/b", 3, Like(b"a/b"), ["a"], "", "a\0b"])
def test_anything_else_is_refused(value):
    with pytest.raises(OptionError, match=r"output is .*; expected a path, as a str or a Path"):
        Options(value)
