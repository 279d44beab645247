"""What commands print: nothing that a terminal would obey."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iblip.export.messages import printable
from iblip.serving import cli
from iblip.serving.cli.formatting import echo, echo_verdicts

HOSTILE = "a\x1b[2Jb\x9bc\x7f\r\u202ed\U000e0001"


def test_what_a_terminal_obeys_is_shown_escaped(capsys):
    echo(HOSTILE + "\tz\n")
    shown = capsys.readouterr().out
    assert shown == r"a\u001b[2Jb\u009bc\u007f\r\u202ed\udb40\udc01" + "\tz\n\n"


def test_json_stays_json(capsys):
    echo(json.dumps({"text": HOSTILE}, ensure_ascii=False))
    shown = capsys.readouterr().out
    assert shown.strip().isprintable()
    assert json.loads(shown) == {"text": HOSTILE}


@pytest.mark.parametrize("text", ["می‌خواهم", "👩‍🚀 ok", "«7»\n"])
def test_scripts_and_emoji_are_left_as_they_are(text):
    assert printable(text) == text


def test_every_command_prints_by_it():
    allowed = {"formatting.py", "progress.py"}  # the latter draws, and escapes what it is told
    for path in Path(cli.__file__).parent.glob("*.py"):
        assert path.name in allowed or "click.echo" not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("error: no", "<red>error</>: no"),
        ("PASS: the build\nFAIL: it", "<green>PASS</>: the build\n<red>FAIL</>: it"),
        ("  Greedy text  pass", "  Greedy text  <green>pass</>"),
        (
            "  Greedy text        pass        FAIL",
            "  Greedy text        <green>pass</>        <red>FAIL</>",
        ),
        ("  smoke  driver: none  FAILED", "  smoke  driver: none  <red>FAILED</>"),
        ("a/config.pbtxt:3: warning: it", "a/config.pbtxt:3: <yellow>warning</>: it"),
        ("    1: 'they pass' differs: ok", "    1: 'they pass' differs: ok"),
        ("an error: of another", "an error: of another"),
    ],
)
def test_only_verdicts_are_coloured(text, shown, monkeypatch, capsys):
    monkeypatch.setattr("iblip.serving.cli.formatting.has_colours", lambda stream: True)
    echo_verdicts(text)
    seen = capsys.readouterr().out.removesuffix("\n")
    for code, mark in {"31": "red", "32": "green", "33": "yellow", "0": "/"}.items():
        seen = seen.replace(f"\x1b[{code}m", f"<{mark}>")
    assert seen == shown
