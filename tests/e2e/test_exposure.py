"""A server with mutual TLS and a token: who is answered, who is not, and that it is watched."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

import grpc
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from iblip.serving.cli import iblip
from iblip.serving.client import TLS, Client, RefusedError, UnreachableError
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.question import canary_question
from iblip.serving.server.server import TritonServer
from iblip.serving.server.tls import ServerTLS
from iblip.serving.wire.names import GRPC_TOKEN, TOKEN
from tests.e2e.test_supervision import Supervised

SECRET = "aB9._~+/-tok=en=="
LIMIT_S = 60


@pytest.fixture(scope="module")
def tls(certificates):
    return TLS(
        authorities=certificates / "ca.pem",
        certificate=certificates / "client.pem",
        key=certificates / "client.key",
    )


@pytest.fixture(scope="module")
def guarded(vicuna_build, certificates, tmp_path_factory):
    """`iblip serve` with mutual TLS, a token and a flag of Triton's own."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "token").write_text(SECRET + "\n")
    flags = {
        "--tls-cert": certificates / "local.pem",
        "--tls-key": certificates / "local.key",
        "--tls-client-ca": certificates / "ca.pem",
        "--token-file": directory / "token",
        "--log": directory / "log",
    }
    words = [word for pair in flags.items() for word in pair]
    with Supervised(vicuna_build, directory, *words, "--", "--log-verbose=1") as server:
        yield server


def get(url, headers=None):
    try:
        request = urllib.request.Request(url, headers=headers or {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def answers_of(server):
    """How many questions the one-answer model has answered: the canary's alone."""
    with urllib.request.urlopen(server.urls["metrics"], timeout=10) as response:
        lines = response.read().decode().splitlines()
    wanted = 'nv_inference_request_success{model="instructblip_unary"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def test_the_one_with_certificate_and_token_is_answered(guarded, tls, picture, tmp_path):
    url = guarded.urls["grpc"]
    with Client(url, tls=tls, token=SECRET) as client:
        text = client.ask(picture, "How many digits are there?").text
    with Client(url, tls=tls) as client, pytest.raises(RefusedError, match="wants a token"):
        client.contract()
    for missing in (None, TLS(authorities=tls.authorities)):
        with Client(url, tls=missing, token=SECRET) as client, pytest.raises(UnreachableError):
            client.contract()
    words = ["ask", str(picture), "How many digits are there?", "--url", url]
    (tmp_path / "token").write_text(SECRET)
    words += ["--tls-ca", str(tls.authorities), "--tls-cert", str(tls.certificate)]
    words += ["--tls-key", str(tls.key), "--token-file", str(tmp_path / "token")]
    done = CliRunner().invoke(iblip, words)
    assert (done.exit_code, done.stdout.strip()) == (0, text)
    assert CliRunner().invoke(iblip, words[:-2]).exit_code == 1


def test_its_canary_is_answered_and_starts_nothing_again(guarded):
    end = time.monotonic() + LIMIT_S
    while answers_of(guarded) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
    status, health = guarded.probe("ready")
    assert (status, health["restarts"]) == (200, 0)
    log = (guarded.temporary / "log").read_text()
    assert "model_lifecycle.cc" in log
    assert SECRET not in log


def test_http_wants_the_token_too_and_stays_on_this_machine(guarded):
    http = guarded.urls["http"]
    assert get(f"{http}/v2/health/ready") == 200
    for path in ("models/instructblip/config", "models/stats", "models/instructblip"):
        assert get(f"{http}/v2/{path}") == 403
        assert get(f"{http}/v2/{path}", {TOKEN: "f" * 16}) == 403
        assert get(f"{http}/v2/{path}", {TOKEN: SECRET}) == 200
    port = int(http.rpartition(":")[2])
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port), 5):
        pass


def test_nobody_registers_memory_or_changes_logs_and_traces(guarded, tls):
    http = guarded.urls["http"]
    for path in (
        "systemsharedmemory/status",
        "cudasharedmemory/status",
        "logging",
        "trace/setting",
    ):
        assert get(f"{http}/v2/{path}", {TOKEN: SECRET}) == 403
    credentials = tls.credentials()
    with grpc.secure_channel(guarded.urls["grpc"], credentials) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        region = service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=1)
        for call, request in (
            (service.SystemSharedMemoryRegister, region),
            (service.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            (service.LogSettings, service_pb2.LogSettingsRequest()),
            (service.TraceSetting, service_pb2.TraceSettingRequest()),
        ):
            with pytest.raises(grpc.RpcError, match="restricted") as caught:
                call(request, metadata=((GRPC_TOKEN, SECRET),), timeout=10)
            assert "iblip-closed" in caught.value.details()


def test_the_canary_of_a_server_with_tls(vicuna_build, certificates):
    pair = {"certificate": certificates / "named.pem", "key": certificates / "named.key"}
    options = ServerOptions(tls=ServerTLS(**pair), opened=("shared-memory",))
    with TritonServer(vicuna_build / REPOSITORY, options) as server:
        ask = canary_question(server)
        for _ in range(2):
            ask(30)
        # Shared memory is open here: the region is looked for, and is not there.
        ssl = triton.InferenceServerClient(
            server.grpc_url,
            ssl=True,
            root_certificates=str(certificates / "ca.pem"),
            channel_args=[("grpc.ssl_target_name_override", "triton.example")],
        )
        with ssl as client, pytest.raises(InferenceServerException, match="Unable to open shared"):
            client.register_system_shared_memory("a", "/iblip-no-such-region", 8)
        server.stop()
        with pytest.raises(UnreachableError, match="does not answer"):
            ask(5)
