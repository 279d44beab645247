"""Whose code serves: that of the package that starts the server, wherever it is started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import iblip
from iblip.export.errors import IblipError
from iblip.serving.client import Client
from tests.e2e.test_container import LOAD_S
from tests.ports import free_ports

PROCESSES = 4
"""Of the Python models of a build that runs on ONNX Runtime: `instructblip_unary` has two."""

MARK = """

import os, sys
print("loaded", os.path.realpath(__file__), file=sys.stderr, flush=True)
"""


@pytest.fixture
def other(tmp_path):
    """A second worktree's package, whose models tell where they are loaded from."""
    copy = tmp_path / "other" / "iblip"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(iblip.__file__).parent, copy, ignore=ignore)
    with (copy / "serving" / "wire" / "errors.py").open("a") as wire:
        wire.write(MARK)
    return copy


@pytest.fixture
def user(tmp_path):
    """A user's folder, whose modules have the names of this project's rooms and end the program."""
    folder = tmp_path / "user"
    for name in ("serving", "engines", "model_repository"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('the user has {name}')")
    (folder / "export.py").write_text("raise SystemExit('the user has export.py')")
    return folder


def start(package, build, user, *flags, **options):
    """`iblip serve` of that package, in the user's folder, of a build that is named from there."""
    command = [sys.executable, "-m", "iblip", "serve", os.path.relpath(build, user), *flags]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return subprocess.Popen(
        command, cwd=user, env=environment, stdout=subprocess.PIPE, text=True, **options
    )


def answer(url, example):
    """What the server says, once it is ready."""
    end = time.monotonic() + LOAD_S
    with Client(url) as client:
        while True:
            with contextlib.suppress(IblipError):
                client.contract()
                return client.ask(example.image, example.prompt).text
            assert time.monotonic() < end
            time.sleep(0.2)


def loaded(log):
    """The files that the server's models have told of."""
    return [line.split()[1] for line in log.splitlines() if line.startswith("loaded ")]


def test_a_server_runs_the_code_that_has_started_it(vicuna_build, other, user, examples):
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    process = start(other, vicuna_build, user, *ports, "--json", "--log", "triton.log")
    try:
        url = json.loads(process.stdout.readline())["grpc"]
        assert answer(url, examples[0])
        assert (
            loaded((user / "triton.log").read_text())
            == [str(other / "serving/wire/errors.py")] * PROCESSES
        )
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_so_does_one_that_is_started_by_the_printed_command(vicuna_build, other, user, examples):
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    command, _ = start(other, vicuna_build, user, *flags, "--print-command").communicate(timeout=60)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = user / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], cwd=user, env=bare, stdout=stream, stderr=stream
        )
    try:
        assert answer(f"127.0.0.1:{ports['grpc']}", examples[0])
        assert loaded(log.read_text()) == [str(other / "serving/wire/errors.py")] * PROCESSES
    finally:
        server.terminate()
        assert server.wait(60) == 0
