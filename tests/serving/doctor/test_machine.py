"""What is found on this machine, and in a Python with nothing but the client."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from click.testing import CliRunner

from iblip.engines.hardware.containers import WHEELS
from iblip.engines.hardware.nvidia import cuda_version
from iblip.export.system.installing import install_command
from iblip.serving.cli import iblip
from iblip.serving.doctor import probes
from iblip.serving.doctor.machine import PORTS, read_machine
from iblip.serving.doctor.packages import PYTHONS
from iblip.serving.doctor.probes import infer_version, load_faults
from iblip.serving.doctor.requirements import (
    Requirement,
    installed_packages,
    read_requirements,
)
from tests.pins import PINS


@pytest.fixture(scope="module")
def machine():
    return read_machine()


def test_this_machine_is_seen_as_it_is(machine):
    import onnxruntime
    import torch

    assert machine.providers == tuple(onnxruntime.get_available_providers())
    assert machine.obstacles["onnxruntime"] is None
    assert machine.torch_cuda == torch.version.cuda
    assert machine.packages["numpy"] == PINS["numpy"]
    rtx = machine.libraries["tensorrt-rtx"]
    assert rtx.version == PINS["tensorrt-rtx-cu12-libs"]
    assert "sm89" in rtx.targets
    assert machine.triton.version == WHEELS[PINS["nvidia-pytriton"]]
    assert machine.triton.backends == ("python",)
    assert machine.faults == {}
    assert machine.memory > 0
    assert machine.disk > 0


@pytest.fixture
def not_loaded(monkeypatch):
    """No package is loaded to see whether it works, which takes seconds: other tests do that."""
    monkeypatch.setattr(probes, "load_faults", lambda packages: {})


@pytest.mark.usefixtures("not_loaded")
def test_ports_that_are_in_use_are_seen():
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", PORTS["metrics"]))
        except OSError:  # by another program: then it is what is seen
            pass
        else:
            one.listen()
        assert "metrics" in read_machine().taken


def test_the_command_finds_no_problem_here():
    done = CliRunner().invoke(iblip, ["doctor"])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 100
    assert "usable: onnxruntime" in done.output
    assert done.output.splitlines()[-1].startswith("no problems")


@pytest.mark.usefixtures("not_loaded")
def test_json_has_all_of_it():
    report = json.loads(CliRunner().invoke(iblip, ["doctor", "--json"]).output)
    titles = {finding["title"] for finding in report["machine"]}
    assert {"Python", "client", "export", "Triton", "NVIDIA driver", "memory", "ports"} <= titles
    assert report["verdict"] in ("ok", "note", "warning")
    assert report["container"] is None


def test_it_runs_with_the_client_alone(few_packages):
    python = few_packages("iblip")
    command = [python, "-m", "iblip", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {one["title"]: one for one in json.loads(done.stdout)["machine"]}
    assert found["client"]["verdict"] == "ok"
    assert "torch" in found["export"]["found"]
    assert install_command("export") in found["export"]["remedy"]
    assert found["ONNX Runtime"]["found"] == "onnxruntime missing, to run engines"
    assert found["Triton"]["found"].startswith("none here")


def test_a_container_that_is_not_known_is_a_wrong_call():
    done = CliRunner().invoke(iblip, ["doctor", "--container", "19.04-py3"])
    assert done.exit_code == 2
    assert "Known: 26.07-py3" in done.stderr


def test_a_package_that_does_not_load_is_found_by_loading_it(tmp_path, monkeypatch):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    faults = load_faults({"torchvision": "0.1", "onnxruntime": "1.31.0"})
    assert faults == {"torchvision": "RuntimeError: operator nms does not exist"}


def test_a_package_that_takes_for_ever_is_told(tmp_path, monkeypatch):
    (tmp_path / "tokenizers.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probes, "LOAD_TIMEOUT_S", 0.5)
    assert "longer than" in load_faults({"tokenizers": "0.1"})["tokenizers"]


def test_the_rest_of_a_package_without_a_name_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "umpy-1.0.dist-info").mkdir()
    (tmp_path / "umpy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_packages()["numpy"] == PINS["numpy"]


def test_requirements_are_read_from_the_project():
    found = read_requirements()
    assert Requirement(name="click", bounds=">=8.5") in found[""]
    assert {one.name for one in found["server"]} == {"aiohttp", "nvidia-pytriton", "numpy"}


@pytest.mark.parametrize(
    ("bounds", "version", "allowed"),
    [
        ("<3,>=1.26", "1.26.4", True),
        ("<3,>=1.26", "3.0", False),
        (">=1.26", "1.9", False),
        (">=2.12", "2.13.0+cpu", True),
        ("==1.31.0", "1.31.1", False),
        ("", "0.1", True),
    ],
)
def test_bounds(bounds, version, allowed):
    assert Requirement(name="x", bounds=bounds).allows(version) is allowed


def test_tensorrt_counts_in_ten_thousands():
    import tensorrt_rtx_libs

    (library,) = Path(tensorrt_rtx_libs.__path__[0]).glob("libtensorrt_rtx.so.*")
    number = ctypes.CDLL(str(library)).getInferLibVersion()
    assert version("tensorrt-rtx-cu12-libs").startswith(infer_version(number) + ".")
    assert infer_version(110100) == "11.1.0"


def test_the_pythons_are_those_of_the_project():
    (least, limit) = (".".join(map(str, one)) for one in PYTHONS)
    assert set(metadata("iblip")["Requires-Python"].split(",")) == {f">={least}", f"<{limit}"}


def test_cuda_counts_in_thousands():
    assert (cuda_version(13010), cuda_version(12090)) == ("13.1", "12.9")
