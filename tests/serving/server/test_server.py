"""Finding, starting and explaining a server, as far as that goes without one."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from iblip.export.errors import OptionError, ServingError
from iblip.serving.server import installation
from iblip.serving.server.address import ListenAddress
from iblip.serving.server.children import ModelProcesses
from iblip.serving.server.command import scratch_parent, server_command
from iblip.serving.server.installation import find_triton
from iblip.serving.server.log import last_words, loading_models, ready_models, why
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

LOADING = """\
I1129 06:17:04.796667 57 model_lifecycle.cc:472] "loading: qformer:1"
I1129 06:17:04.796728 57 model_lifecycle.cc:472] "loading: language_model:1"
I1129 06:17:04.796794 57 model_lifecycle.cc:472] "loading: tokenizer:1"
I1129 06:17:04.876235 91 pb_stub.cc:2105]  Failed to preinitialize Python stub: no 'model.py'
I1129 06:17:06.027134 57 model_lifecycle.cc:839] "successfully loaded 'qformer'"
"""

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


def test_models_that_still_load_are_read_from_the_log():
    assert loading_models(LOADING) == ["language_model", "tokenizer"]


def test_what_a_models_process_says_in_tritons_own_words_is_told():
    assert last_words(LOADING) == "Failed to preinitialize Python stub: no 'model.py'"


def test_a_process_that_ended_unseen_is_of_a_model_that_still_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("iblip.serving.server.children.GRACE_S", -1.0)
    model = tmp_path / "language_model" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import sys; print(flush=True); sys.stdin.read()")
    command = (sys.executable, model)
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as running,
        subprocess.Popen("true", stdin=pipe),
    ):
        assert running.stdout is not None
        running.stdout.readline()
        models = ModelProcesses(os.getpid())
        while (lost := models.lost(LOADING)) is None:
            pass
        assert lost == "tokenizer"


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
    with pytest.raises(ServingError, match=r"pip install [^`]*\[server\]'`, or .*--triton PATH"):
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
        ({"cache_mib": 1 << 44}, "to [0-9]+ MiB, the memory of this machine"),
        ({"ready_timeout_s": 0}, "ready_timeout_s is 0; expected more than 0 seconds"),
    ],
)
def test_nonsense_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ServerOptions(**options)


@pytest.mark.parametrize(
    ("host", "flags", "reachable"),
    [
        ("localhost", ["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        ("0.0.0.0", ["0.0.0.0", "0.0.0.0"], "127.0.0.1"),
        ("::1", ["ipv6:::1", "[::1]"], "[::1]"),
        ("::", ["ipv6:::", "[::]"], "[::1]"),
    ],
)
def test_a_host_is_resolved_before_triton_sees_it(host, flags, reachable):
    address = ListenAddress.resolve(host)
    assert [address.flag("http"), address.flag("grpc")] == flags
    assert address.reachable == reachable


@pytest.mark.parametrize("host", ["nosuch.invalid", "", "a" * 300, "x\0y"])
def test_a_host_that_is_none_is_said(host, tmp_path):
    server = TritonServer(tmp_path, ServerOptions(host=host))
    with pytest.raises(ServingError, match=r"--host .* Give an address of this machine"), server:
        pass


def test_a_host_of_another_machine_is_said(tmp_path):
    server = TritonServer(tmp_path, ServerOptions(host="192.0.2.1"))  # of documentation alone
    with pytest.raises(ServingError, match=r"cannot be used: .*Give --host an address"), server:
        pass


ODD = ["with space", "it's", "a&b", "x;y", "$HOME", "été", 'say "no"', "~tilde", "a*b", "new\nline"]


@pytest.mark.parametrize("name", ODD)
def test_triton_sees_plain_paths_alone(tmp_path, monkeypatch, name):
    repository, scratch = tmp_path / name / "model_repository", tmp_path / "scratch"
    repository.mkdir(parents=True)
    scratch.mkdir()
    options = ServerOptions(triton=executable(tmp_path / "tritonserver"))
    command = server_command(repository, options, {}, scratch)
    (flag,) = [one for one in command.arguments if one.startswith("--model-repository=")]
    path = flag.partition("=")[2]
    assert shlex.quote(path) == path
    assert Path(path).samefile(repository)


def test_a_plain_path_is_given_as_it_is(tmp_path):
    options = ServerOptions(triton=executable(tmp_path / "tritonserver"))
    (tmp_path / "scratch").mkdir()
    command = server_command(tmp_path, options, {}, tmp_path / "scratch")
    assert f"--model-repository={tmp_path}" in command.arguments


def test_a_folder_of_temporary_files_with_an_odd_name_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "été & co").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "été & co"))
    assert scratch_parent() == Path("/tmp")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ServingError, match=r"été & co.* Set TMPDIR to another"):
        scratch_parent()


def test_a_model_whose_process_dies_while_it_loads_is_noticed(tmp_path):
    binary = executable(tmp_path / "tritonserver")
    # As Triton does: it starts a process for a model, and does not ask after it.
    binary.write_text(
        "#!/bin/sh\n"
        "sh -c 'echo \"what():  no such luck\"; sleep 0.5' models/tokenizer/1/model.py &\n"
        "exec sleep 600\n"
    )
    server = TritonServer(tmp_path, ServerOptions(triton=binary))
    with pytest.raises(ServingError) as caught, server:
        pass
    assert str(caught.value) == (
        "Triton did not start: the process of tokenizer ended before it had loaded, and Triton "
        "would wait for it.\nwhat():  no such luck"
    )


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
