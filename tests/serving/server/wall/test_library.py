"""The library that is loaded into Triton, and the command that loads it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from iblip.serving.server.wall.command import LAUNCH, wall_arguments
from iblip.serving.server.wall.library import NoLibraryError, classification_library

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
HOSTS = dict.fromkeys(PORTS, "127.0.0.1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of which the name is none that the linker takes in a list."""
    folder = tmp_path / "a cache: it's ours"
    monkeypatch.setenv("IBLIP_CACHE", str(folder))
    return folder


def compilers(folder, monkeypatch, script=None):
    """`PATH` with a compiler of ours, or with none."""
    folder.mkdir(exist_ok=True)
    if script is not None:
        (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_it_is_compiled_once(cache, tmp_path, monkeypatch):
    library = classification_library()
    assert list((cache / "libraries").iterdir()) == [library]
    before = library.stat().st_ino
    assert classification_library() == library
    assert library.stat().st_ino == before
    compilers(tmp_path / "bin", monkeypatch, f'exec {shutil.which("cc")} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert classification_library() != library  # another compiler's


def test_a_process_that_has_it_hides_it_from_its_own(cache, tmp_path):
    library = tmp_path / "library.so"
    library.symlink_to(classification_library())
    for others in ("", ":/lib/none.so"):
        done = subprocess.run(
            ["/bin/sh", "-c", 'echo "${LD_PRELOAD-unset}"'],
            env={"LD_PRELOAD": f"{library}{others}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == (others[1:] or "unset")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no C compiler: none of cc, gcc, clang"),
        ("echo 'no header' >&2; exit 1", "no header"),
        ("exit 3", "status 3"),
        ('while [ "$1" != -o ]; do shift; done; echo no library > "$2"', "it does not load"),
    ],
)
def test_why_there_is_none_is_told_with_what_to_do(
    cache, tmp_path, monkeypatch, caplog, script, reason
):
    compilers(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(NoLibraryError) as caught:
        classification_library()
    assert reason in caught.value.reason
    assert "apt install gcc" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.so"))
    arguments = wall_arguments(HOSTS, PORTS, 7, tmp_path)
    assert not [word for word in arguments if "preload" in word]
    assert caplog.messages == [str(caught.value)]


def test_without_a_wall_before_http_the_library_stays(cache, tmp_path):
    arguments = wall_arguments(HOSTS, PORTS, 0, tmp_path)
    assert "--listen" not in arguments
    (preload,) = (word for word in arguments if word.startswith("--preload="))
    assert (tmp_path / preload.partition("=")[2]).samefile(classification_library())
    assert arguments[-1] == "--"


def launch(tmp_path, *arguments, code="import os, json; print(json.dumps(dict(os.environ)))"):
    return subprocess.run(
        [sys.executable, LAUNCH, "--max-body=7", *arguments, "--", sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_it_becomes_the_command(tmp_path):
    done = launch(tmp_path, code="import os, sys; print(os.getpid()); sys.exit(5)")
    assert (done.returncode, done.stdout.strip().isdigit()) == (5, True)
    assert "LD_PRELOAD" not in json.loads(launch(tmp_path).stdout)


def test_a_port_that_is_taken_is_named_before_the_command_begins(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = launch(tmp_path, "--listen", "127.0.0.1", port, "http.sock")
    assert done.returncode == 1
    assert done.stderr.strip() == f"port {port} of 127.0.0.1 cannot be used: Address already in use"
    assert not done.stdout


def test_the_wall_ends_with_the_command(tmp_path):
    """However it ends; its port is free then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"""
import http.client, os, signal
connection = http.client.HTTPConnection("127.0.0.1", {port}, timeout=60)
connection.request("GET", "/v2")
print(connection.getresponse().status, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # What waits for the end of its output waits for the wall, too: it has the same.
    done = launch(tmp_path, "--listen", "127.0.0.1", str(port), "http.sock", code=code)
    assert (done.returncode, done.stdout) == (-9, "503\n")
    socket.create_server(("127.0.0.1", port)).close()
