"""A build that was proven, and one that was built without verification."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip


@dataclass(frozen=True)
class Proven:
    """A build, what `iblip prove --json` printed of it, and the user's cache that it wrote to."""

    build: Path
    record: dict[str, Any]
    cache: Path


@pytest.fixture(scope="session")
def call():
    """`call(build, "--stage", "graphs")`: the result of `iblip prove`."""
    return lambda *words: CliRunner().invoke(
        iblip, ["prove", *map(str, words)], prog_name="iblip", catch_exceptions=False
    )


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    """`copied(build)`: a copy of a build whose files are links to the build's."""

    def copy(build):
        directory = tmp_path_factory.mktemp("copy") / "build"
        return shutil.copytree(build, directory, copy_function=os.link)

    return copy


@pytest.fixture(scope="module")
def proven(vicuna_build, copied, call, tmp_path_factory):
    """The LLaMA demo, every stage of it."""
    build, cache = copied(vicuna_build), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IBLIP_CACHE", str(cache))
        done = call(build, "--limit", 4, "--no-torch", "--html", "--json")
    assert done.exit_code == 0, done.output
    return Proven(build=build, record=json.loads(done.stdout), cache=cache)


@pytest.fixture(scope="session")
def run_iblip():
    """`run_iblip("export", "inspect", build)`: the result of a command."""
    return lambda *words: CliRunner().invoke(iblip, list(map(str, words)), prog_name="iblip")
