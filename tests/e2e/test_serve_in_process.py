"""`iblip.serve`: a real server that this process starts, supervises and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time

import pytest

import iblip
from iblip import BuildDirectoryError, OptionError, ServingError
from tests.e2e.processes import LIMIT_S, group, wait_until_gone


def wait_for(condition):
    end = time.monotonic() + 2 * LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_answers_is_started_again_and_leaves_nothing(vicuna_build, examples):
    """From a thread, where no signal handler can be set; then from an event loop."""
    example = examples[0]
    with iblip.load(vicuna_build) as model:
        expected = model.ask(example.image, example.prompt).text
    told, found = [], {}

    def run():
        with iblip.serve(str(vicuna_build), progress=told.append) as server:
            pid, url = server._server.pid, server.url
            with iblip.Client(url, timeout=iblip.Timeout(connect=2 * LIMIT_S)) as client:
                found["first"] = client.ask(example.image, example.prompt, max_new_tokens=30).text
                found["states"] = [server.state]
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda: server.state == "restarting")
                wait_for(lambda: server.state == "ready")
                found["restarts"] = server.restarts
                found["second"] = client.ask(example.image, example.prompt).text
            assert server.url == url
            found["pids"] = [pid, server._server.pid]
        found["states"].append(server.state)
        server.stop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found["first"] == found["second"] == expected
    assert found["states"] == ["ready", "stopped"]
    assert found["restarts"] == 1
    for pid in found["pids"]:
        wait_until_gone(pid)
    notes = [step.text for step in told]
    assert notes.count("vision_encoder is loaded") == 2
    assert "Starting the server again now." in notes


def test_an_event_loop_serves_and_asks(vicuna_build, examples):
    example = examples[1]

    async def run():
        server = await asyncio.to_thread(iblip.serve, vicuna_build, cache_mib=0)
        pid = server._server.pid
        try:
            async with iblip.AsyncClient(server.url) as client:
                rows = [(example.image, example.prompt)] * 3
                texts = [row.text async for row in client.map(rows)]
                answer = await client.ask(example.image, example.prompt)
        finally:
            await asyncio.to_thread(server.stop)
        return pid, [*texts, answer.text]

    pid, texts = asyncio.run(run())
    assert len(set(texts)) == 1
    assert not group(pid)


def test_a_start_that_is_left_is_given_up(vicuna_build):
    """What a Ctrl-C does while models load: `stop` is called before the server is ready."""
    from iblip.hosting import _options
    from iblip.serving.repository.assembling import REPOSITORY
    from iblip.serving.server.health import Health
    from iblip.serving.server.supervisor import RestartPolicy, Supervisor

    options = _options(iblip.Build(vicuna_build), {})
    health, ready = Health(), []
    supervisor = Supervisor(
        vicuna_build / REPOSITORY,
        options,
        policy=RestartPolicy(),
        health=health,
        progress=lambda line: supervisor.stop(),  # when the first model has loaded
    )
    supervisor.run(ready.append)
    assert not ready
    assert not health.has_started
    supervisor.run(ready.append)  # stopped for good
    assert not ready


def test_what_cannot_be_served_is_refused(vicuna_build, tmp_path):
    with pytest.raises(BuildDirectoryError, match="is not a build"):
        iblip.serve(tmp_path)
    with pytest.raises(OptionError, match=r"serve has no option 'cache'\. Did you mean 'cache"):
        iblip.serve(vicuna_build, cache=3)
    with pytest.raises(OptionError, match=r"^vllm_python is python, but this build's language"):
        iblip.serve(vicuna_build, vllm_python="python")
    with pytest.raises(OptionError, match="TLS needs both tls_certificate and tls_key"):
        iblip.serve(vicuna_build, tls_certificate="a.pem")
    for name, value, message in (
        ("grpc_port", "x", "expected an integer"),
        ("host", 5, "expected text"),
        ("ready_timeout_s", "x", "expected a number"),
        ("max_restarts", "x", "expected an integer"),
        ("cache_mib", "x", "expected an integer"),
        ("log", tmp_path, "it is a directory"),
        ("log", tmp_path / "nowhere" / "log", "there is no directory"),
    ):
        with pytest.raises(OptionError, match=f"^{name} .*{message}"):
            iblip.serve(vicuna_build, **{name: value})
    with pytest.raises(OptionError, match="the limit of restarts is -1"):
        iblip.serve(vicuna_build, max_restarts=-1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"port {port} \(grpc\).* another with grpc_port"):
            iblip.serve(vicuna_build, grpc_port=port)
