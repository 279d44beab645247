"""Calls of `iblip bench` that are wrong, whatever the server."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip

WRONG = {
    ("--rate", "5", "-n", "10"): "--requests is given",
    ("--rate", "5", "-c", "10"): "--concurrency is given",
    ("--seconds", "5"): "--seconds is given",
    ("--rate", "5", "--search", "--slo", "ttft=1s"): "--rate is given",
    ("--search",): "--search needs --slo",
    ("--search", "--slo", "itl=5ms"): "Give ttft or e2e",
    ("--slo-share", "0.5"): "without --slo",
    ("--slo", "ttft=5"): "a unit",
    ("--rate", "nan"): "nan is not in the range",
    ("--rate", "1", "--seconds", "0.5"): "expected 1 to",
    ("--search", "--slo", "ttft=1s", "--seconds", "nan"): "nan is not in the range",
    ("--rate", "0"): "0",
    ("--rate", "inf"): "inf",
    ("--max-new-tokens", "9-3"): "the shorter first",
    ("--prompt-words", "0"): "1 or more",
    ("--plot", "a.pdf"): ".png",
    ("--plot", "nowhere/a.png"): "folder that is there",
    ("--write-inputs", "new", "--plot", "a.png"): "measures nothing",
    ("--input", "nowhere"): "nowhere",
    ("--input", ".", "--image", "."): "give one of them",
    ("somewhere:1", "--url", "elsewhere:1"): "leave one of them out",
    ("http://127.0.0.1:1",): "gRPC",
    ("--timeout", "nan"): "nan is not in the range",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_wrong_call_is_refused_before_anything_is_asked(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(iblip, ["bench", *words])
    assert done.exit_code == 2, done.stderr
    assert WRONG[words] in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "5"), "--rate needs --slo"),
        (("--rate", "5", "-c", "2", "--slo", "ttft=1s"), "give one of them"),
        (("--slo", "ttft"), "expected NAME=TIME"),
        (("--seconds", "nan"), "nan is not in the range"),
        (("--minutes", "nan"), "nan is not in the range"),
        (("--minutes", "0"), "0"),
    ],
)
def test_a_wrong_call_of_tune_starts_no_server(vicuna_build, words, said):
    done = CliRunner().invoke(iblip, ["tune", str(vicuna_build), *words])
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(iblip, ["bench", "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 1
    assert "matplotlib, which is not installed. Run `pip install" in done.stderr
    assert "[plot]" in done.stderr
