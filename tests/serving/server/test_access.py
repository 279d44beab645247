"""What Triton is told of TLS, tokens and closed calls, and which servers stay on this machine."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from iblip.export.errors import OptionError, ServingError
from iblip.serving.cli import iblip
from iblip.serving.server.access import (
    access_flags,
    address_of,
    check_triton_flags,
    check_vulnerabilities,
)
from iblip.serving.server.command import triton_arguments
from iblip.serving.server.installation import Installation, find_triton
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.tls import ServerTLS

TOKEN = "0123456789abcdef"


@pytest.fixture
def tls(certificates):
    return ServerTLS(certificate=certificates / "local.pem", key=certificates / "local.key")


def test_what_nobody_needs_is_closed_by_a_key_of_each_start():
    first, second = (list(access_flags(ServerOptions())) for _ in range(2))
    closed = r"shared-memory,logging,trace:iblip-closed=[0-9a-f]{64}"
    assert re.fullmatch(f"--grpc-restricted-protocol={closed}", first[0])
    assert re.fullmatch(f"--http-restricted-api={closed}", first[1])
    assert len(first) == 2
    assert not set(first) & set(second)


def test_the_operator_opens_what_is_closed():
    options = ServerOptions(opened=("shared-memory", "logging", "trace"))
    assert not list(access_flags(options))
    flags = list(access_flags(ServerOptions(opened=("shared-memory",))))
    assert [flag.partition("=")[2].partition(":")[0] for flag in flags] == ["logging,trace"] * 2
    with pytest.raises(OptionError, match=r"\['inference'\] cannot be opened"):
        ServerOptions(opened=("inference",))


def test_a_token_is_wanted_for_every_call_but_health():
    flags = list(access_flags(ServerOptions(token=TOKEN)))
    wanted = "inference,metadata,model-config,model-repository,statistics:iblip-token="
    assert f"--grpc-restricted-protocol={wanted}{TOKEN}" in flags
    assert f"--http-restricted-api={wanted}{TOKEN}" in flags
    assert TOKEN not in repr(ServerOptions(token=TOKEN))


def test_with_tls_only_grpc_leaves_this_machine(tls):
    options = ServerOptions(host="0.0.0.0", tls=tls)
    addresses = {name: address_of(name, options).number for name in ("grpc", "http", "metrics")}
    assert addresses == {"grpc": "0.0.0.0", "http": "127.0.0.1", "metrics": "127.0.0.1"}
    plain = ServerOptions(host="0.0.0.0")
    assert address_of("http", plain).number == "0.0.0.0"
    assert address_of("http", ServerOptions(host="::1", tls=tls)).number == "::1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_triton_with_known_faults_stays_on_this_machine(host, tls):
    wheel = find_triton()
    for options in (ServerOptions(host=host), ServerOptions(host=host, tls=tls, token=TOKEN)):
        with pytest.raises(ServingError, match=r"Triton 2\.51\.0 .* has known vulnerabilities"):
            check_vulnerabilities(options, wheel)
    check_vulnerabilities(ServerOptions(host=host, allow_known_vulnerabilities=True), wheel)
    for loopback in ("localhost", "127.0.0.9", "::1"):
        check_vulnerabilities(ServerOptions(host=loopback), wheel)


def test_other_servers_are_known_by_the_record_beside_them(tmp_path):
    binary = tmp_path / "bin" / "tritonserver"
    server = Installation(binary=binary, origin="installed: here")
    check_vulnerabilities(ServerOptions(host="0.0.0.0"), server)  # nothing is known of it
    (tmp_path / "TRITON_VERSION").write_text("2.71.0\n")
    check_vulnerabilities(ServerOptions(host="0.0.0.0"), server)
    (tmp_path / "TRITON_VERSION").write_text("2.58.0\n")
    with pytest.raises(ServingError, match=r"Triton 2\.58\.0 \(installed: here\) has known"):
        check_vulnerabilities(ServerOptions(host="0.0.0.0"), server)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("log-verbose=1", "is no flag of Triton. Expected --NAME=VALUE"),
        ("--", "is no flag of Triton"),
        ("--http-port=1", "use --http-port"),
        ("--http-address", "use --host"),
        ("--grpc-server-cert=x", "use --tls-cert"),
        ("--grpc-restricted-protocol=inference:a=b", "use --token-file or --open"),
        ("--model-control-mode=explicit", "use a restart"),
        ("--allow-http=false", "watches the server by it"),
    ],
)
def test_a_flag_that_serve_answers_for_is_refused(flag, message):
    with pytest.raises(OptionError, match=message):
        check_triton_flags(("--log-verbose=1", flag))


def test_other_flags_of_triton_go_before_our_own(tmp_path):
    options = ServerOptions(extra=("--grpc-keepalive-time=5000", "--log-verbose=1"))
    ports = {"http": 1, "grpc": 2, "metrics": 3}
    arguments = triton_arguments(tmp_path, options, ports, find_triton(), tmp_path)
    times = [word for word in arguments if word.startswith("--grpc-keepalive-time=")]
    assert times == ["--grpc-keepalive-time=5000"]
    assert "--log-verbose=1" in arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tls-cert", "CERTS/local.pem"], "TLS needs both --tls-cert and --tls-key"),
        (["--tls-client-ca", "CERTS/ca.pem"], "TLS needs both --tls-cert and --tls-key"),
        (
            ["--tls-cert", "CERTS/local.pem", "--tls-key", "CERTS/client.key"],
            "is not that of the certificate",
        ),
        (["--token-file", "CERTS/nowhere"], "the token file '.*' cannot be read"),
        (["--host", "0.0.0.0"], "has known vulnerabilities: .*--allow-known-vulnerabilities"),
        (["--", "--http-port=1"], "cannot be given to Triton: use --http-port"),
        (["--", "verbose"], "'verbose' is no flag of Triton"),
    ],
)
def test_serve_refuses_before_it_starts_anything(vicuna_build, certificates, words, message):
    words = [word.replace("CERTS", str(certificates)) for word in words]
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--health-port=0"]
    done = CliRunner().invoke(iblip, ["serve", str(vicuna_build), *ports, *words])
    assert done.exit_code != 0
    assert re.search(message, done.stderr), done.stderr
