"""What an operator lets callers do, and values that make no sense."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from iblip.export.errors import OptionError
from iblip.serving.cli import iblip
from iblip.serving.gateway.options import GatewayOptions
from tests.ports import closed_port


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_body_mib": 0}, "max_body_mib is 0; expected 1 to 1024"),
        ({"max_open": 0}, "max_open is 0"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"image_hosts": ("https://a.example",)}, "expected a name such as"),
        ({"image_hosts": ("",)}, "expected a name such as"),
        ({"cors_origins": ("a.example",)}, "expected https://HOST"),
        ({"cors_origins": ("https://a.example/",)}, "expected https://HOST"),
    ],
)
def test_values_that_make_no_sense_are_refused(given, words):
    with pytest.raises(OptionError, match=words):
        GatewayOptions(**given)


def test_images_are_fetched_from_no_host_unless_one_is_allowed():
    assert GatewayOptions().image_urls is None
    urls = GatewayOptions(image_hosts=("cdn.example.org", ".example.com")).image_urls
    assert urls.hosts == ("cdn.example.org", ".example.com")
    assert (urls.schemes, urls.private) == (("https",), False)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a=127.0.0.1:1", "a=127.0.0.1:2"], "a is there twice"),
        (["a=http://127.0.0.1:1"], "Leave out http://"),
        (["a=127.0.0.1:1", "--tokenizer", "b=x"], "which is no server here"),
        (["a=127.0.0.1:1", "--keys", "nowhere"], "cannot be read"),
        (["a=127.0.0.1:1", "--max-open", "0"], "max_open is 0"),
        ([], "missing argument"),
    ],
)
def test_a_wrong_call_of_the_command_is_refused_before_it_listens(words, text, tmp_path):
    done = CliRunner().invoke(iblip, ["gateway", *words, "--port", "0"])
    assert done.exit_code == 2
    assert text in done.stderr


def test_a_server_without_a_name_must_answer():
    with closed_port() as port:
        done = CliRunner().invoke(
            iblip, ["gateway", f"127.0.0.1:{port}", "--timeout", "1", "--port", "0"]
        )
    assert done.exit_code == 1
    assert "no server answers" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--openai-keys", "keys"], "--openai-keys needs --openai-port"),
        (["--openai-port", "0", "--openai-keys", "nowhere"], "cannot be read"),
    ],
)
def test_serve_says_what_is_wrong_before_anything_is_started(words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(iblip, ["serve", ".", *words])
    assert done.exit_code == 2
    assert text in done.stderr
