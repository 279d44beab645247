"""What an operator need not get up for: models that die or hang, a Triton that dies, and probes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from iblip.serving.client import Client, ClientError, EngineError, GenerationOptions
from iblip.serving.server.children import WALL
from iblip.serving.server.vitals import STALE_S
from tests.e2e.processes import children, models_of, wait_until_gone

LIMIT_S = 120
LONG = GenerationOptions(min_new_tokens=900, max_new_tokens=900, temperature=5.0, n=4, seed=1)


class Supervised:
    """`iblip serve` in a process of its own."""

    def __init__(self, build, tmp_path, *arguments):
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
        self.temporary = tmp_path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "iblip", "serve", build, *ports, "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        self.urls = json.loads(self.process.stdout.readline())

    def probe(self, name):
        """Status and body of a probe."""
        url = self.urls["health"].replace("/ready", f"/{name}")
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def wait_until_ready_is(self, status):
        end = time.monotonic() + LIMIT_S
        while (found := self.probe("ready"))[0] != status:
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found[1]

    @property
    def triton(self):
        (keeper,) = children(self.process.pid)
        (triton,) = children(keeper)
        return triton

    def pid_of(self, name):
        """A process of Triton's, of one of its models, or of the wall before it."""
        return self.triton if name == "triton" else models_of(self.triton)[name]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def supervised(vicuna_build, tmp_path_factory):
    """Tests leave it ready, and started again as often as it may be in a row, or less."""
    with Supervised(vicuna_build, tmp_path_factory.mktemp("supervised")) as server:
        yield server


@pytest.fixture(scope="module")
def another(vicuna_build, tmp_path_factory):
    with Supervised(vicuna_build, tmp_path_factory.mktemp("another")) as server:
        yield server


def ask_long(url, image):
    """Asks for a long answer from a thread; a list that gets the error that ends it."""
    errors, begun = [], threading.Event()

    def ask():
        with Client(url) as client:
            try:
                for _ in client.stream(image, "Describe the image.", options=LONG):
                    begun.set()
            except (ClientError, EngineError) as error:
                errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(LIMIT_S)
    return thread, errors


def test_whatever_dies_is_started_again(supervised, examples):
    assert supervised.probe("startup")[0] == 200
    restarts = supervised.probe("ready")[1]["restarts"]
    names = ("instructblip", "vision_encoder", WALL, "triton")
    for number, name in enumerate(names, start=restarts + 1):
        before = supervised.triton
        thread, errors = ask_long(supervised.urls["grpc"], examples[0].image)
        os.kill(supervised.pid_of(name), signal.SIGKILL)
        reason = supervised.wait_until_ready_is(503)["reason"]
        assert (name if name != "triton" else "Triton ended with status -9") in reason
        # Nothing could finish this answer: its caller is told, and does not wait for a deadline.
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        assert errors or name in ("vision_encoder", WALL)
        assert supervised.probe("live")[0] == 200
        supervised.wait_until_ready_is(200)
        assert supervised.probe("ready")[1]["restarts"] == number
        assert supervised.triton != before
        with Client(supervised.urls["grpc"]) as client:  # at the same address
            assert client.ask(examples[0].image, examples[0].prompt).text


@pytest.mark.parametrize("name", ["instructblip", "triton"])
def test_what_stands_still_is_started_again(another, examples, name):
    os.kill(another.pid_of(name), signal.SIGSTOP)
    another.wait_until_ready_is(503)
    another.wait_until_ready_is(200)
    with Client(another.urls["grpc"]) as client:
        assert client.ask(examples[0].image, examples[0].prompt).text


def test_a_server_that_is_only_busy_is_left_alone(supervised, examples):
    before = supervised.probe("ready")
    noticed = time.monotonic() + 3 * STALE_S  # a server that stood still would be, by then
    while time.monotonic() < noticed:
        threads = [ask_long(supervised.urls["grpc"], examples[0].image)[0] for _ in range(3)]
        for thread in threads:
            thread.join(LIMIT_S)
    assert supervised.probe("ready") == before == (200, {**before[1], "state": "ready"})


def test_a_server_that_does_not_stay_ready_is_given_up(vicuna_build, tmp_path):
    with Supervised(vicuna_build, tmp_path, "--max-restarts", "1") as server:
        os.kill(server.pid_of("qformer"), signal.SIGKILL)
        server.wait_until_ready_is(503)
        server.wait_until_ready_is(200)
        os.kill(server.pid_of("qformer"), signal.SIGKILL)
        _, stderr = server.process.communicate(timeout=LIMIT_S)
    assert server.process.returncode == 1
    assert "the process of qformer has died" in stderr
    assert "failed to stay ready 2 times in a row" in stderr


def test_an_orchestrator_may_restart_it_instead(vicuna_build, tmp_path):
    with Supervised(vicuna_build, tmp_path, "--no-restart") as server:
        triton = server.triton
        os.kill(server.pid_of("instructblip"), signal.SIGKILL)
        _, stderr = server.process.communicate(timeout=LIMIT_S)
    assert server.process.returncode == 1
    assert "the process of instructblip has died" in stderr
    wait_until_gone(triton)


def test_a_killed_supervisor_leaves_nothing_behind(vicuna_build, tmp_path, examples):
    with Supervised(vicuna_build, tmp_path) as server:
        triton = server.triton
        regions = f"{next(tmp_path.glob('iblip-triton-*')).name}*"
        assert list(Path("/dev/shm").glob(regions))
        threads = [ask_long(server.urls["grpc"], examples[0].image)[0] for _ in range(3)]
        server.process.kill()
        wait_until_gone(triton)
        for thread in threads:
            thread.join(LIMIT_S)
    end = time.monotonic() + LIMIT_S
    while list(tmp_path.glob("iblip-triton-*")) or list(Path("/dev/shm").glob(regions)):
        assert time.monotonic() < end
        time.sleep(0.05)
