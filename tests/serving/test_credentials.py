"""Certificates, keys and tokens that cannot be used are refused by name, before anything starts."""

from __future__ import annotations

import subprocess

import pytest

from iblip.export.errors import OptionError
from iblip.serving.client import TLS
from iblip.serving.credentials import check_token, read_token
from iblip.serving.gateway.callers import read_callers
from iblip.serving.server.tls import ServerTLS


def test_a_key_that_fits_is_taken(certificates):
    pair = {"certificate": certificates / "local.pem", "key": certificates / "local.key"}
    ServerTLS(**pair, client_authorities=certificates / "ca.pem")
    TLS(authorities=str(certificates / "ca.pem"), **pair)


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("none.pem", "local.key", "the certificate '.*none.pem' cannot be read: no such file"),
        ("local.pem", ".", "the private key .* cannot be read: no such file"),
        ("local.pem", "client.key", "client.key is not that of the certificate .*local.pem"),
        ("local.key", "local.key", "Expected a certificate and its private key, both PEM"),
        ("local.pem", "local.pem", "Expected a certificate and its private key, both PEM"),
        ("local.csr", "local.key", "Expected a certificate and its private key, both PEM"),
        ("local.pem", "encrypted.key", "encrypted.key is encrypted, which gRPC cannot read"),
    ],
)
@pytest.mark.parametrize("kind", [ServerTLS, TLS])
def test_a_pair_that_does_not_fit_is_refused(certificates, certificate, key, message, kind):
    if key == "encrypted.key":
        words = ["openssl", "pkey", "-in", "local.key", "-aes128", "-passout", "pass:word"]
        subprocess.run([*words, "-out", key], cwd=certificates, check=True)
    with pytest.raises(OptionError, match=message):
        kind(certificate=certificates / certificate, key=certificates / key)


def test_authorities_that_are_none_are_refused(certificates):
    pair = {"certificate": certificates / "local.pem", "key": certificates / "local.key"}
    with pytest.raises(OptionError, match=r"local\.key holds no certificate authority"):
        ServerTLS(**pair, client_authorities=certificates / "local.key")
    with pytest.raises(OptionError, match=r"authorities '.*nowhere' cannot be read"):
        TLS(authorities=certificates / "nowhere")
    with pytest.raises(OptionError, match="expected both a certificate and its key, or neither"):
        TLS(certificate=certificates / "local.pem")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("short", "the token has 5 characters; expected 16 to 4096"),
        ("", "the token has 0 characters"),
        ("a" * 5000, "the token has 5000 characters"),
        ("secret secret secret", "a character other than"),
        ("secret,secret:secret", "a character other than"),
        ("secret\nsecret-secret", "a character other than"),
        (b"secretsecretsecret", "a character other than"),
    ],
)
def test_a_token_that_cannot_travel_is_refused_and_not_repeated(token, message):
    with pytest.raises(OptionError, match=message) as caught:
        check_token(token)
    assert "secret" not in str(caught.value)


def test_a_token_is_read_without_its_line_break(tmp_path):
    file = tmp_path / "token"
    file.write_text("aB9._~+/-tok=en==\n")
    assert read_token(file) == "aB9._~+/-tok=en=="
    with pytest.raises(OptionError, match=r"the token file '.*nowhere' cannot be read: no such"):
        read_token(tmp_path / "nowhere")


def test_secrets_that_everybody_may_read_are_warned_of(tmp_path, certificates, caplog):
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef\n")
    key = tmp_path / "local.key"
    key.write_bytes((certificates / "local.key").read_bytes())
    for mode, count in ((0o600, 0), (0o640, 0), (0o644, 3)):
        caplog.clear()
        for path in (secret, key):
            path.chmod(mode)
        read_token(secret)
        read_callers(secret)
        ServerTLS(certificate=certificates / "local.pem", key=key)
        assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True] * count
    assert "0123456789abcdef" not in caplog.text
