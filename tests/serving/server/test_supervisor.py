"""The supervisor's parts, without a server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from iblip.export.errors import OptionError
from iblip.serving.server.health import Health, HealthServer
from iblip.serving.server.server import KEEPER
from iblip.serving.server.supervisor import RestartPolicy
from iblip.serving.server.vitals import Progress, Vitals

METRICS = """\
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="vision_encoder",version="1"} 3
nv_inference_pending_request_count{model="vision_encoder",version="1"} 2
iblip_generated_tokens_total{model="language_model"} 40
iblip_requests_running{model="language_model"} 1
iblip_requests_waiting{model="language_model"} 4
"""


def at(time_s, *, done, to_do, cpu_s):
    name = "language_model"
    return Progress(time_s=time_s, done={name: done}, to_do={name: to_do}, cpu_s={name: cpu_s})


BEFORE = at(0.0, done=5.0, to_do=2.0, cpu_s=1.0)


@pytest.mark.parametrize(
    ("after", "stuck"),
    [
        (at(10.0, done=5.0, to_do=3.0, cpu_s=1.1), ["language_model"]),
        (at(10.0, done=6.0, to_do=3.0, cpu_s=1.1), []),  # it has finished something
        (at(10.0, done=5.0, to_do=3.0, cpu_s=9.0), []),  # it computes
        (at(10.0, done=5.0, to_do=0.0, cpu_s=1.1), []),  # it has nothing to do
    ],
)
def test_a_model_is_stuck_only_if_it_has_work_and_does_none(after, stuck):
    assert after.stuck(BEFORE) == stuck


def test_progress_is_read_from_tritons_metrics(tmp_path):
    progress = Vitals(os.getpid(), tmp_path).progress(METRICS)
    assert progress.done == {"vision_encoder": 3, "language_model": 40}
    assert progress.to_do == {"vision_encoder": 2, "language_model": 5}


@pytest.fixture
def model_process(tmp_path):
    """A process that runs a model named `vision`, as a child of this one."""
    script = tmp_path / "vision" / "1" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time\nprint(flush=True)\ntime.sleep(600)")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        yield process
        process.kill()


def test_a_process_stands_still_whose_heartbeat_is_missed_twice(
    model_process, tmp_path, monkeypatch
):
    now = time.time()
    monkeypatch.setattr("iblip.serving.server.vitals.time", SimpleNamespace(time=lambda: now))
    heartbeat = tmp_path / str(model_process.pid)
    vitals = Vitals(os.getpid(), tmp_path)
    assert vitals.fault() is None  # it has shown none yet
    for beats_again in (True, False):
        heartbeat.touch()
        os.utime(heartbeat, (now - 60,) * 2)
        assert vitals.fault() is None
        if beats_again:  # the machine itself had stood still
            heartbeat.touch()
            assert vitals.fault() is None
    fault = vitals.fault()
    assert (fault.model, fault.reason) == (
        "vision",
        "the process of vision has stood still for 60 s",
    )


def test_a_process_that_has_died_is_named(model_process, tmp_path):
    vitals = Vitals(os.getpid(), tmp_path)
    model_process.kill()
    model_process.wait()
    assert vitals.fault().reason == "the process of vision has died"


def test_waits_before_restarts_double_up_to_a_limit():
    policy = RestartPolicy()
    assert [policy.wait_s(n) for n in range(1, 8)] == [0, 1, 2, 4, 8, 16, 30]
    with pytest.raises(OptionError, match="limit of restarts is -1"):
        RestartPolicy(limit=-1)


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def shown(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {
        name: int(value) for name, value in re.findall(r"^iblip_server_(\w+) (\d+)$", text, re.M)
    }


def test_probes_follow_the_state():
    health = Health()
    with HealthServer(health, "127.0.0.1", 0) as server:

        def codes():
            paths = ("startup", "ready", "live")
            return [ask(server.port, f"/health/{path}")[0] for path in paths]

        assert codes() == [503, 503, 200]
        assert shown(server.port) == {"ready": 0, "started": 0, "restarts_total": 0}
        health.state, health.has_started = "ready", True
        assert codes() == [200, 200, 200]
        assert shown(server.port) == {"ready": 1, "started": 1, "restarts_total": 0}
        health.state, health.reason, health.restarts = "restarting", "it died", 2
        assert codes() == [200, 503, 200]
        assert shown(server.port) == {"ready": 0, "started": 1, "restarts_total": 2}
        told = {"state": "restarting", "reason": "it died", "restarts": 2}
        assert ask(server.port, "/health/ready") == (503, told)
        health.state = "failed"
        assert codes() == [200, 503, 503]
        assert ask(server.port, "/anything")[0] == 404


STUBBORN = "trap '' TERM; sleep 1000 & echo child $! >&2; wait"


def keep(scratch, stop_s, script):
    return subprocess.Popen(
        [sys.executable, "-I", "-S", KEEPER, scratch, str(stop_s), "/bin/sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ended(pid):
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_keeper_ends_like_its_server(tmp_path):
    with keep(tmp_path, 1, "exit 3") as keeper:
        assert keeper.wait(60) == 3
    with keep(tmp_path, 1, "kill -SEGV $$") as keeper:
        assert keeper.wait(60) == -signal.SIGSEGV
    assert tmp_path.exists()  # its parent may still read the log there


def test_a_closed_pipe_ends_everything_that_the_server_has_started(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with keep(scratch, 0.2, STUBBORN) as keeper:
        server = int(keeper.stdout.readline())
        child = int(keeper.stderr.readline().split()[1])
        keeper.stdin.close()
        assert keeper.wait(60) == -signal.SIGKILL
    wait_until_ended(server)
    wait_until_ended(child)
    assert not scratch.exists()


def test_a_server_is_told_to_stop_before_it_is_killed(tmp_path):
    with keep(tmp_path, 60, "trap 'exit 7' TERM; echo trapped >&2; sleep 1000 & wait") as keeper:
        assert keeper.stderr.readline() == "trapped\n"
        keeper.stdin.close()
        assert keeper.wait(60) == 7
