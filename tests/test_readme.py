"""README's commands, run as they stand there, by a shell, in the order in which they stand there.

`make` itself is left out: whoever runs these tests has run it. So that the tests neither need fixed
ports nor take long, options that README leaves at their defaults are set through the environment.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, without their comments."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*$", "", block, flags=re.MULTILINE) for block in found]


def commands(word: str) -> list[str]:
    """Every shell command that contains `word`."""
    return [line for block in blocks("sh") for line in block.splitlines() if word in line]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like a clone after `make`."""
    directory = tmp_path_factory.mktemp("clone")
    (directory / ".venv").symlink_to(sys.prefix)
    for folder in ("checkpoints", "export"):  # the latter for `python -m export`
        (directory / folder).symlink_to(ROOT / folder)
    return directory


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    http, grpc, metrics = free_ports(3)
    return os.environ | {
        "IBLIP_SERVE_HTTP_PORT": str(http),
        "IBLIP_SERVE_GRPC_PORT": str(grpc),
        "IBLIP_SERVE_METRICS_PORT": str(metrics),
        "IBLIP_ASK_URL": f"127.0.0.1:{grpc}",
        "IBLIP_EXPORT_BUILD_LIMIT": "24",
        "IBLIP_EXPORT_VERIFY_LIMIT": "24",
    }


def shell(command: str, home: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=home,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_two_commands_are_targets_of_the_makefile():
    (block,) = [block for block in blocks("sh") if "make" in block]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in block.splitlines():
        program, target = line.split()
        assert program == "make"
        assert f"\n{target}: " in makefile


@pytest.fixture(scope="module")
def built(home: Path, environment: dict[str, str]) -> list[str]:
    """What the build, verify and inspect commands print."""
    return [shell(line, home, environment) for line in commands("export ")]


def test_building_verifying_and_inspecting(built: list[str], home: Path):
    assert len(built) == 4
    assert (home / "build/flant5/manifest.json").exists()
    assert (home / "build/instructblip-demo-vicuna-fp16/manifest.json").exists()
    assert "iblip serve build/flant5" in built[0]
    assert "build/flant5: fp32  pass" in built[2]
    assert "Greedy text  pass" in built[2]
    assert "pixels uint8 [batch, 72, 72, 3]" in built[3]


@pytest.fixture(scope="module")
def server(built: list[str], home: Path, environment: dict[str, str]) -> Iterator[None]:
    """`iblip serve`, until it says that it is ready; then Ctrl-C."""
    (line,) = commands("iblip serve")
    with subprocess.Popen(
        line.split(), cwd=home, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for output in process.stdout:
                if "iblip ask" in output:
                    break
            else:
                pytest.fail("the server ended before it was ready")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        assert process.returncode == 0


@pytest.mark.e2e
def test_asking(server: None, home: Path, environment: dict[str, str]):
    answers = [shell(line, home, environment).strip() for line in commands("iblip ask")]
    assert answers[0] == "3"
    assert len(answers[1]) > len(answers[0])


@pytest.mark.e2e
def test_asking_from_python(server: None, home: Path, environment: dict[str, str]):
    (block,) = blocks("python")
    script = block.replace("127.0.0.1:8001", environment["IBLIP_ASK_URL"])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=home,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 eos\n")
