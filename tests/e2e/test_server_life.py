"""A real server's beginning and end: what does not load, what is killed, what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from iblip.export.errors import ServingError
from iblip.serving.client import (
    AsyncClient,
    Client,
    DisconnectedError,
    GenerationOptions,
    InputError,
    UnreachableError,
)
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer
from tests.e2e.processes import children, group, wait_until_gone
from tests.ports import free_ports

SHARED_MEMORY = Path("/dev/shm")


def in_shared_memory(scratch: Path) -> list[Path]:
    """Of one server alone: another worker of the tests may have servers, too."""
    return list(SHARED_MEMORY.glob(f"{scratch.name}*"))


def test_a_server_leaves_nothing_behind(vicuna_build):
    with TritonServer(vicuna_build / REPOSITORY) as server:
        pid = server.pid
        assert len(group(pid)) > 1  # the server and its Python models
        text = urllib.request.urlopen(server.metrics_url, timeout=60).read().decode()
        assert "nv_inference_request_success" in text
        scratch = server.log_path.parent
        assert in_shared_memory(scratch)
    assert group(pid) == []
    assert not in_shared_memory(scratch)
    assert not scratch.exists()
    server.stop()  # once more is harmless


def test_a_server_killed_in_mid_stream_is_said_and_cleaned_up(vicuna_build, examples):
    long = GenerationOptions(min_new_tokens=900, max_new_tokens=900, temperature=5.0, seed=1)
    with (
        TritonServer(vicuna_build / REPOSITORY) as server,
        Client(server.grpc_url) as client,
    ):
        pid, scratch = server.pid, server.log_path.parent
        # Eight at once: none is whole before the server is gone, however slow this process is.
        ask = partial(client.stream, examples[0].image, "Describe the image.", options=long)
        *_, (stream, first) = [(stream, next(stream)) for stream in (ask() for _ in range(8))]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DisconnectedError, match="went away before the answer was complete"):
            list(stream)
        assert stream.text.startswith(first)
        server.wait()
        with pytest.raises((UnreachableError, DisconnectedError)):
            client.ask(examples[0].image, "What?")
    assert group(pid) == []
    assert not in_shared_memory(scratch)


def test_why_a_model_did_not_load_is_told(vicuna_build, tmp_path):
    repository = tmp_path / REPOSITORY  # no build above it
    shutil.copytree(vicuna_build / REPOSITORY / "qformer", repository / "qformer")
    with pytest.raises(ServingError) as caught, TritonServer(repository):
        pass
    assert str(caught.value).startswith("Triton did not start.\nqformer: ")
    assert "is not a build: it has no manifest.json" in str(caught.value)
    assert "At:" not in str(caught.value)


def test_a_damaged_config_is_told(vicuna_build, tmp_path):
    repository = tmp_path / REPOSITORY
    shutil.copytree(vicuna_build / REPOSITORY / "qformer", repository / "qformer")
    config = repository / "qformer" / "config.pbtxt"
    config.write_text(config.read_text() + "\nmax_bath_size: 3\n")
    with (
        pytest.raises(ServingError, match=r"max_bath_size|config\.pbtxt"),
        TritonServer(repository),
    ):
        pass


def test_a_moved_build_is_served(vicuna_build, tmp_path, examples):
    moved = tmp_path / "elsewhere"
    shutil.copytree(vicuna_build, moved, symlinks=True)
    log = tmp_path / "triton.log"
    options = ServerOptions(log=log, cache_mib=0)
    told = []
    with (
        TritonServer(moved / REPOSITORY, options, progress=told.append) as server,
        Client(server.grpc_url) as client,
    ):
        assert client.ask(examples[0].image, examples[0].prompt).text
    assert "instructblip is loaded" in told
    assert "successfully loaded 'instructblip'" in log.read_text()  # a log asked for is kept


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_a_build_with_any_name_is_served_at_any_loopback(
    vicuna_build, tmp_path, examples, monkeypatch, host
):
    moved = tmp_path / 'l\'été & $HOME; a "b"'
    shutil.copytree(vicuna_build, moved, symlinks=True)
    (tmp_path / "tmp é; x").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp é; x"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("LC_ALL", "C")
    with (
        TritonServer(moved / REPOSITORY, ServerOptions(host=host)) as server,
        Client(server.grpc_url) as client,
    ):
        assert client.ask(examples[0].image, examples[0].prompt).text
        assert urllib.request.urlopen(server.metrics_url, timeout=60).status == 200
        assert urllib.request.urlopen(f"{server.http_url}/v2/health/ready").status == 200


def test_clients_come_back_with_their_server(vicuna_build, examples):
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    options = ServerOptions(**ports)
    image, prompt = examples[0].image, examples[0].prompt
    with TritonServer(vicuna_build / REPOSITORY, options) as server:
        url = server.grpc_url
        old = Client(url)
        expected = old.ask(image, prompt).text
    with pytest.raises((UnreachableError, DisconnectedError)):
        old.ask(image, prompt)
    with ThreadPoolExecutor(4) as pool:
        ready = pool.submit(Client(url).wait_until_ready, 300)
        waiting = [
            pool.submit(old.ask, image, prompt, timeout=300),
            pool.submit(Client(url, timeout=300).ask, image, prompt),
            pool.submit(asyncio.run, AsyncClient(url).ask(image, prompt, timeout=300)),
        ]
        with TritonServer(vicuna_build / REPOSITORY, options):
            assert ready.result(timeout=300).build.name == old.contract().build.name
            assert [one.result(timeout=300).text for one in waiting] == [expected] * 3
            assert Client(url).ask(image, prompt).text == expected


def test_a_model_without_its_file_is_noticed_while_it_loads(vicuna_build, tmp_path):
    broken = tmp_path / "build"
    shutil.copytree(vicuna_build, broken, symlinks=True)
    (broken / REPOSITORY / "qformer" / "1" / "model.py").unlink()
    server = TritonServer(broken / REPOSITORY)
    with pytest.raises(ServingError, match="the process of qformer ended before it"), server:
        pass


def test_faulty_prompts_leave_nothing_in_flight(vicuna_build, tmp_path, examples):
    log = tmp_path / "triton.log"
    with (
        TritonServer(vicuna_build / REPOSITORY, ServerOptions(log=log)) as server,
        Client(server.grpc_url) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(number):
            example = examples[number % 12]
            if number % 2:
                return client.ask(example.image, example.prompt).text
            with pytest.raises(InputError, match="the prompt is empty"):
                client.ask(example.image, " ")
            return ""

        assert all(list(pool.map(ask, range(80)))[1::2])
    # Triton unloads it only when it has no request any more; otherwise it is killed.
    assert "successfully unloaded 'instructblip'" in log.read_text()


def iblip(*arguments, **options):
    command = [sys.executable, "-m", "iblip", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def serve(build, *arguments):
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
    return iblip("serve", build, *ports, *arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_the_command_serves_until_it_is_told_to_stop(vicuna_build, examples, number):
    process = serve(vicuna_build)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Stop it:" in line:
            break
    text = "".join(lines)
    assert "is ready" in text
    url = next(line.split()[1] for line in lines if "gRPC" in line)
    assert f"--url {url}" in text
    asked = iblip("ask", examples[0].image, examples[0].prompt, "--url", url, "--json")
    answer = json.loads(asked.communicate(timeout=60)[0])
    assert asked.returncode == 0
    assert answer["text"]
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert "Stopped." in rest
    assert process.returncode == 0


def test_a_killed_command_takes_its_server_with_it(vicuna_build):
    process = serve(vicuna_build, "--json")
    ready = json.loads(process.stdout.readline())
    (keeper,) = children(process.pid)
    (triton,) = children(keeper)
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(triton)
    with pytest.raises(UnreachableError):
        Client(ready["grpc"]).contract()
