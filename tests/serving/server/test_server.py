"""Finding, starting and explaining a server, as far as that goes without one."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from iblip.export.errors import OptionError, ServingError
from iblip.serving.server import installation
from iblip.serving.server.installation import find_triton
from iblip.serving.server.log import ready_models, why
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

FAILED = r"""
E1121 22:15:58.587144 5664 server.cc:241] "CudaDriverHelper has not been initialized."
I1121 22:15:58.600000 5664 model_lifecycle.cc:839] "successfully loaded 'tokenizer'"
E1121 22:15:58.958005 5664 backend_model.cc:692] "ERROR: Failed to create instance: ValueError: no"
E1121 22:15:58.958137 5664 model_lifecycle.cc:642] "failed to load 'qformer' version 1: Internal: \
EngineError: there is no graph model.onnx\nBuild it again.\n\nAt:\n  /b/model.py(4): initialize\n"
I1121 22:15:58.958166 5664 model_lifecycle.cc:777] "failed to load 'qformer'"
error: creating server: Internal - failed to load all models
""".replace("\\\n", "")

UNPARSED = """\
E1121 22:15:58.587144 5664 server.cc:241] "CudaDriverHelper has not been initialized."
E1121 22:15:58.958137 5664 model_repository_manager.cc:1460] "Poll failed for model directory 'x': \
failed to read text proto from /r/x/config.pbtxt"
""".replace("\\\n", "")


def test_the_reason_of_a_failed_model_is_told_without_its_stack():
    assert (
        why(FAILED)
        == "qformer: Internal: EngineError: there is no graph model.onnx\nBuild it again."
    )


def test_other_errors_are_told_without_those_of_a_missing_gpu():
    told = why(UNPARSED)
    assert told.startswith("Poll failed for model directory 'x'")
    assert "Cuda" not in told


def test_a_log_that_explains_nothing_is_shown_at_its_end():
    log = "\n".join(f"line {number}" for number in range(100))
    assert why(log).splitlines()[-1] == "line 99"
    assert len(why(log).splitlines()) == 15
    assert why("") == "it wrote no log"


def test_loaded_models_are_read_from_the_log():
    assert ready_models(FAILED) == ["tokenizer"]


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_given_binary_or_its_folder_is_taken(tmp_path):
    binary = executable(tmp_path / "bin" / "tritonserver")
    assert find_triton(binary).binary == binary
    assert find_triton(tmp_path).binary == binary


def test_a_given_path_that_is_no_server_is_refused(tmp_path):
    with pytest.raises(ServingError, match=r"nothing is not a Triton server"):
        find_triton(tmp_path / "nothing")


def test_the_containers_server_comes_before_the_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "CONTAINER", tmp_path)
    binary = executable(tmp_path / "bin" / "tritonserver")
    found = find_triton()
    assert found.binary == binary
    assert found.arguments(tmp_path) == []  # the container's own defaults fit it


def test_without_any_server_every_place_and_the_remedy_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "CONTAINER", tmp_path)
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServingError, match=r"pip install 'iblip\[server\]'.*--triton PATH"):
        find_triton()


def test_python_models_get_this_interpreter_first(tmp_path):
    found = find_triton(executable(tmp_path / "tritonserver"))
    environment = found.environment({"PATH": "/usr/bin", "PYTHONPATH": "/mine"})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["PYTHONPATH"].split(os.pathsep)[-1] == "/mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"http_port": 70000}, "http_port is 70000; expected 0"),
        ({"cache_mib": -1}, "cache_mib is -1"),
        ({"ready_timeout_s": 0}, "ready_timeout_s is 0; expected more than 0 seconds"),
    ],
)
def test_nonsense_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ServerOptions(**options)


def test_a_missing_repository_is_said_with_the_command_that_makes_one(tmp_path):
    server = TritonServer(tmp_path / "none")
    with pytest.raises(ServingError, match=r"no model repository .*none\. Build one with"), server:
        pass


def test_a_taken_port_is_said_with_its_option(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        binary = executable(tmp_path / "tritonserver")
        server = TritonServer(tmp_path, ServerOptions(triton=binary, grpc_port=port))
        with pytest.raises(ServingError, match=rf"port {port} \(grpc\).*--grpc-port"), server:
            pass


def test_a_server_that_ends_at_once_is_said(tmp_path):
    server = TritonServer(tmp_path, ServerOptions(triton=executable(tmp_path / "tritonserver")))
    with pytest.raises(ServingError, match="Triton did not start"), server:
        pass


def test_a_server_that_crashes_at_its_start_gets_a_second_one(tmp_path):
    binary = executable(tmp_path / "tritonserver")
    binary.write_text(f"#!/bin/sh\necho started >> {tmp_path}/starts\nkill -ABRT $$\n")
    told = []
    server = TritonServer(tmp_path, ServerOptions(triton=binary), progress=told.append)
    with pytest.raises(ServingError, match="Triton did not start"), server:
        pass
    assert (tmp_path / "starts").read_text().splitlines() == ["started"] * 2
    assert len(told) == 1
    assert told[0].endswith("Starting it again.")
