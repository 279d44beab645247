"""What the container does, as far as that goes without one: its command, its packages, its health.

The server is the one that pip carries. Its Python models run in an environment that has what
`deploy/Dockerfile` installs, and no more.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from iblip.serving.client import Client
from tests.ports import free_ports

dockerfile = pytest.importorskip("dockerfile", reason="its wheels are for Linux on x86-64")

RECIPE = Path(__file__).parents[2] / "deploy" / "Dockerfile"
LOAD_S = 120


def words(instruction):
    """Of the recipe's instruction, as a list."""
    (found,) = [c for c in dockerfile.parse_file(str(RECIPE)) if c.cmd.upper() == instruction]
    return list(found.value)


def state(build):
    """Every file of a build, and when it was last written; Python's compiled ones do not count:
    where they cannot be written, Python goes without."""
    files = [path for path in build.rglob("*") if not path.is_dir()]
    return {path: path.lstat().st_mtime_ns for path in files if "__pycache__" not in path.parts}


def test_a_build_is_served_by_the_containers_command(
    vicuna_build, examples, few_packages, tmp_path
):
    build = tmp_path / "elsewhere" / "mounted"
    shutil.copytree(vicuna_build, build, symlinks=True)
    before = state(build)
    python = few_packages("iblip[runtime]", "onnxruntime", "nvidia-pytriton")
    assert not list(python.parents[1].glob("lib/*/site-packages/torch"))

    ports = free_ports(4)
    command = [str(build) if word == "/build" else word for word in words("CMD")[1:]]
    command[command.index("--host") + 1] = "127.0.0.1"
    for name, port in zip(("http", "grpc", "metrics", "health"), ports, strict=True):
        command.append(f"--{name}-port={port}")
    health = words("HEALTHCHECK")[2:]  # after CMD and the interpreter
    health[-1] = health[-1].replace("8003", str(ports[3]))

    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [python, "-m", "iblip", *command],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert subprocess.run([python, *health], capture_output=True, check=False).returncode == 1
        end = time.monotonic() + LOAD_S
        while subprocess.run([python, *health], capture_output=True, check=False).returncode:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        with Client(f"127.0.0.1:{ports[1]}") as client:
            example = examples[0]
            assert client.ask(example.image, example.prompt).text
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert "successfully loaded 'instructblip'" in log.read_text()  # Triton's own log
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert state(build) == before  # so a build may be mounted read-only
