"""The gateway that `iblip serve` starts beside a server with TLS, mutual TLS and a token."""

from __future__ import annotations

import base64

import openai
import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip
from iblip.serving.client import TLS, Client
from tests.e2e.test_supervision import Supervised
from tests.serving.gateway.running import messages

SECRET = "aB9._~+/-tok=en=="
QUESTION = "Describe the image."


@pytest.fixture(params=["local", "named"])
def pair(request, certificates):
    """A server's certificate, for this address or for a name that is elsewhere."""
    return [
        *("--tls-cert", certificates / f"{request.param}.pem"),
        *("--tls-key", certificates / f"{request.param}.key"),
    ]


def answer_of(server, picture, key):
    data = base64.b64encode(picture.read_bytes()).decode()
    api = openai.OpenAI(base_url=server.urls["openai"], api_key=key, max_retries=0)
    (model,) = api.models.list().data
    asked = messages(QUESTION, f"data:image/webp;base64,{data}")
    answer = api.chat.completions.create(model=model.id, messages=asked)
    return answer.choices[0].message.content


def test_a_server_with_tls_is_asked(vicuna_build, pair, picture, tmp_path):
    with Supervised(vicuna_build, tmp_path, *pair, "--openai-port=0") as server:
        assert answer_of(server, picture, "none")


def test_a_server_with_mutual_tls_and_a_token_is_asked(
    vicuna_build, certificates, picture, tmp_path, monkeypatch
):
    tls = {"certificate": certificates / "client.pem", "key": certificates / "client.key"}
    monkeypatch.setenv("IBLIP_GATEWAY_TLS_CERT", str(tls["certificate"]))
    monkeypatch.setenv("IBLIP_GATEWAY_TLS_KEY", str(tls["key"]))
    (tmp_path / "token").write_text(SECRET)
    words = [
        *("--tls-cert", certificates / "local.pem", "--tls-key", certificates / "local.key"),
        *("--tls-client-ca", certificates / "ca.pem", "--token-file", tmp_path / "token"),
    ]
    with Supervised(vicuna_build, tmp_path, *words, "--openai-port=0") as server:
        text = answer_of(server, picture, SECRET)
        with pytest.raises(openai.AuthenticationError):
            answer_of(server, picture, "none")
        own = TLS(authorities=certificates / "ca.pem", **tls)
        with Client(server.urls["grpc"], tls=own, token=SECRET) as client:
            assert client.ask(picture, QUESTION).text == text


def test_a_gateway_without_a_certificate_is_refused_before_anything_starts(
    vicuna_build, certificates
):
    words = ["serve", str(vicuna_build), "--openai-port", "0"]
    words += ["--tls-cert", str(certificates / "local.pem")]
    words += ["--tls-key", str(certificates / "local.key")]
    words += ["--tls-client-ca", str(certificates / "ca.pem")]
    done = CliRunner().invoke(iblip, words)
    assert done.exit_code == 2
    assert "Set IBLIP_GATEWAY_TLS_CERT and IBLIP_GATEWAY_TLS_KEY" in done.output
