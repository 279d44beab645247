"""What all commands have in common: how they are called, what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from iblip.export.errors import EngineError, OptionError
from iblip.export.system.installing import install_command
from iblip.serving.cli import EXPORT, IBLIP, iblip
from iblip.serving.cli.commands import EXIT_STATUSES, Command, Commands, Interrupted
from iblip.serving.cli.documents import DOCUMENTS, json_page
from tests.environments import REPOSITORY, environment_with

PATHS = {
    "build": ["--model", "nowhere"],
    "verify": ["nowhere"],
    "prove": ["nowhere"],
    "inspect": ["nowhere"],
    "serve": ["nowhere"],
    "ask": ["nowhere.png", "What is it?"],
    "run": ["nowhere", "--output", "out.jsonl"],
    "demo": ["--model", "nowhere"],
    "bench": ["nowhere"],
    "tune": ["nowhere"],
    "doctor": ["nowhere"],
    "lint": ["nowhere"],
}
"""Of each command that reads a path, a call with one that is not there."""

WHOLE = {
    **PATHS,
    "inspect": ["."],
    "verify": ["."],
    "prove": ["."],
    "serve": ["."],
    "bench": ["."],
    "tune": ["."],
    "build": ["--dry-run"],
    "synthesize": ["instructblip-vicuna-7b", "out"],
    "demo": [],
    "models": [],
    "doctor": [],
    "engines": ["build", ".", "--engine", "tensorrt"],
    "traces": ["list"],
    "completion": ["bash"],
}
"""Calls that get as far as they can without any of the heavy libraries."""


def call(*words, **variables):
    return CliRunner().invoke(iblip, list(map(str, words)), prog_name="iblip", env=variables)


def leaves(group, *path):
    """Every command, with the words that lead to it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield pytest.param((*path, name), command, id=" ".join((*path, name)))


COMMANDS = list(leaves(iblip))


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_every_command_takes_the_common_options_and_lists_each_of_its_own(words, command):
    assert isinstance(command, Command)
    shown = call(*words, "-h")
    assert shown.exit_code == 0
    for option in ("-h, --help", "-v, --verbose", "-q, --quiet"):
        assert option in shown.stdout
    for option in command.params:
        assert not isinstance(option, click.Option) or option.opts[-1] in shown.stdout
    named = [name for names in command._headings.values() for name in names]
    assert sorted(named) == sorted(set(named))
    assert set(named) <= {option.name for option in command.params}


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_a_wrong_option_is_a_wrong_call_everywhere(words, command):
    done = call(*words, "--no-such-option", "--json")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: there is no option --no-such-option.")
    assert f"`iblip {' '.join(words)} -h`" in done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_status"]) == ("UsageError", 2)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_not_there_is_a_wrong_call_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(name, *PATHS[name])
    assert done.exit_code == 2, done.stderr
    assert "there is no" in done.stderr
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", EXPORT)
def test_the_commands_of_export_are_the_same(name):
    first, second = (call(*words, name, "--help") for words in ((), ("export",)))
    assert first.stdout.splitlines()[1:] == second.stdout.splitlines()[1:]


def ending(error):
    group = Commands("iblip")

    @group.command()
    @click.option("--json", is_flag=True)
    def run(json):
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (OptionError("top_p is 3"), 2, "OptionError", "top_p is 3"),
        (EngineError("it broke"), 1, "EngineError", "it broke"),
        (KeyboardInterrupt(), 130, "Interrupted", "interrupted."),
        (Interrupted("Nothing was written."), 130, "Interrupted", "Nothing was written."),
        (ModuleNotFoundError(name="torch"), 1, "MissingPackageError", "needs torch, which is"),
        (click.UsageError("No such thing"), 2, "UsageError", "no such thing."),
    ],
)
def test_errors_are_json_too(error, status, kind, message):
    done = CliRunner().invoke(ending(error), ["run", "--json"])
    document = json.loads(done.stdout)
    assert document["format"] == 1
    assert (document["error"]["kind"], document["error"]["exit_status"]) == (kind, status)
    assert message in document["error"]["message"]
    assert message in done.stderr
    assert done.exit_code == status
    assert status in EXIT_STATUSES
    assert CliRunner().invoke(ending(error), ["run"]).stdout == ""


def test_ctrl_c_while_a_library_is_loaded_is_an_interrupt():
    loading = ImportError("initialization failed")
    loading.__cause__ = KeyboardInterrupt()
    wrapped = EngineError("ONNX Runtime cannot be loaded")
    wrapped.__cause__ = loading
    for error in (loading, wrapped):
        done = CliRunner().invoke(ending(error), ["run"])
        assert (done.exit_code, done.stderr) == (130, "interrupted.\n")


def test_a_module_of_nobody_is_a_bug():
    error = ModuleNotFoundError(name="iblip.servign")
    assert CliRunner().invoke(ending(error), ["run"]).exception is error


def test_a_place_for_vllm_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place, status in ((tmp_path / "file", 2), (tmp_path / "file" / "env", 1)):
        done = call("vllm", "install", "--directory", place)
        assert done.exit_code == status
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert str(place) in done.stderr


def test_what_is_meant_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, suggestion in (
        (["biuld"], "Did you mean 'build'?"),
        (["engines", "lst"], "Did you mean 'list'?"),
        (["build", "--precison", "fp16"], "Did you mean '--precision'?"),
        (["build", "--precision", "pf16"], "Did you mean 'fp16'?"),
        (["build", "--engine", "trt"], "Did you mean 'tensorrt'?"),
        (
            ["build", "--model", "instructblip-vicuna-7b"],
            "Did you mean 'Salesforce/instructblip-vicuna-7b'?",
        ),
        (["build", "--model", "minigpt4-vicuna-7"], "Did you mean 'minigpt4:"),
        (["synthesize", "instructblip-vicuna-7", "out"], "Did you mean 'instructblip-vicuna-7b'?"),
    ):
        done = call(*words)
        assert done.exit_code == 2
        assert suggestion in done.stderr


def complete(*words):
    line = " ".join(["iblip", *words])
    done = call(_IBLIP_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words)))
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_shells_complete_commands_options_and_values():
    assert complete("bu") == ["build"]
    assert complete("build", "--prec") == ["--precision"]
    assert {"fp32", "fp16", "fp8"} == set(complete("build", "--precision", "fp"))
    assert complete("build", "-p", "qformer=bf") == ["qformer=bf16"]
    assert "tensorrt-rtx" in complete("build", "--engine", "tens")
    assert "Salesforce/instructblip-vicuna-7b" in complete("build", "-m", "Sales")
    assert complete("verify", "--stage", "vis") == ["vision_encoder"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell):
    assert "_IBLIP_COMPLETE" in call("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "models"], "stand behind its name: `iblip … --json`"),
        (["build", "--nope"], "there is no option --nope. See `iblip build -h`"),
        (["buld"], "Did you mean 'build'? See `iblip -h`"),
        (["build", "--output="], "it is empty; expected a path"),
        (["build", "--model="], "it is empty; expected a directory or a name"),
        (["ask", "-", "-", "What?"], "`-` is given twice"),
        (["ask", "-", "What?"], "standard input is empty"),
        (["ask", "", "What?"], "there is no image"),
        (["serve", ".", "--log", "nowhere/log"], "there is no directory"),
        (["serve", ".", "--log", "."], "it is a directory"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_home_is_expanded_where_no_shell_does_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IBLIP_CACHE", "~/cache")
    assert str(tmp_path / "cache") in call("traces", "list").stdout
    assert f"{tmp_path}/model" in call("build", "--model=~/model").stderr
    assert f"{tmp_path}/x/examples.jsonl" in call("build", "--examples=~/x").stderr


def test_verdicts_are_coloured_on_a_terminal_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert on_a_terminal("serv").startswith("\x1b[31merror\x1b[0m: there is no command")
    assert call("serv").stderr.startswith("error: ")
    monkeypatch.setenv("NO_COLOR", "1")
    assert on_a_terminal("serv").startswith("error: ")


def on_a_terminal(*words):
    """What a command shows on a terminal."""
    main, other = os.openpty()
    subprocess.run(
        [sys.executable, "-m", "iblip", *words], cwd=REPOSITORY, stderr=other, check=False
    )
    os.close(other)
    try:
        return os.read(main, 10_000).decode()
    finally:
        os.close(main)


@pytest.fixture(scope="module")
def client_only(tmp_path_factory):
    """The Python of an environment with nothing but what the client needs."""
    return environment_with(tmp_path_factory.mktemp("client"), "iblip")


@pytest.mark.parametrize(
    ("words", "statuses", "message"),
    [
        (["doctor"], {0, 1}, "not checked."),  # 1 where the machine has another problem
        (["lint"], {1}, "Reading Triton's configs needs tritonclient"),
        (["inspect"], {0}, "vision_encoder: fp32"),
        (["inspect", "--digests"], {1}, "this needs onnx"),
        (["prove", "--stage", "smoke", "--stage", "text"], {1}, "is not installed"),
        (["serve", "--print-command"], {1}, "there is no Triton server"),
    ],
)
def test_a_client_only_installation_says_what_it_can_of_a_build(
    client_only, words, statuses, message, vicuna_build, tmp_path
):
    name, *options = words
    record = ["--record", tmp_path / "record.jsonl"] if name == "prove" else []
    done = subprocess.run(
        [client_only, "-m", "iblip", name, vicuna_build, *options, *record],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in statuses, done.stderr
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("name", WHOLE)
def test_a_client_only_installation_shows_no_traceback(client_only, tmp_path, name):
    done = subprocess.run(
        [client_only, "-m", "iblip", name, *WHOLE[name]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in EXIT_STATUSES
    if name in ("build", "synthesize"):
        assert done.returncode != 0
        assert install_command("cpu") in done.stderr
    assert "pip install 'iblip" not in done.stderr


def test_the_page_of_documents_is_the_table():
    page = (REPOSITORY / "docs" / "json.md").read_text()
    assert page == json_page(), "python -m iblip.serving.cli.documents > docs/json.md"


PRINTED = {
    "models": ["models"],
    "doctor": ["doctor"],
    "lint": ["lint", "{build}"],
    "lint --rules": ["lint", "--rules"],
    "inspect": ["inspect", "{build}"],
    "build --dry-run": ["build", "--dry-run"],
    "serve --print-command": ["serve", "{build}", "--print-command"],
    "engines list": ["engines", "list"],
    "engines prune": ["engines", "prune", "--all", "--dry-run"],
    "traces list": ["traces", "list"],
    "traces prune": ["traces", "prune", "--all", "--dry-run"],
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_document_has_the_fields_of_the_table(name, vicuna_build, tmp_path, monkeypatch):
    monkeypatch.setenv("IBLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    done = call(*(word.format(build=vicuna_build) for word in PRINTED[name]), "--json")
    first, *fields = json.loads(done.stdout)
    assert first == "format"
    assert set(fields) == set(DOCUMENTS[name])


def test_quiet_shows_no_progress(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told, quiet = (call("build", "--dry-run", *words) for words in ((), ("-q",)))
    assert told.stdout.splitlines()[0] == quiet.stdout.splitlines()[0]
    assert "engine: " in told.stderr
    assert quiet.stderr == ""


def test_traces_are_listed_and_pruned(tmp_path, monkeypatch):
    monkeypatch.setenv("IBLIP_CACHE", str(tmp_path))
    (tmp_path / "traces").mkdir()
    for number, age_s in enumerate((0, 3600, 86400 * 40)):
        file = tmp_path / "traces" / f"{number}.trace"
        file.write_bytes(bytes(1000))
        os.utime(file, (time.time() - age_s,) * 2)
    listed = json.loads(call("traces", "list", "--json").stdout)["traces"]
    assert [(trace["key"], trace["bytes"]) for trace in listed] == [
        ("0", 1000),
        ("1", 1000),
        ("2", 1000),
    ]
    assert "2    1.00 kB  40 d ago" in call("traces", "list").stdout
    assert call("traces", "prune").exit_code == 2
    assert (
        "1 trace would be removed"
        in call("traces", "prune", "--older-than", "30d", "--dry-run").stdout
    )
    assert "1 trace removed: 1.00 kB freed" in call("traces", "prune", "--older-than", "30d").stdout
    call("traces", "prune", "--all")
    assert list((tmp_path / "traces").iterdir()) == []


def test_a_demo_without_a_question_is_refused(tmp_path):
    result = call("demo", "--questions", 0, "--output", tmp_path / "build")
    assert result.exit_code == 2
    assert "0 is not in the range x>=1" in result.stderr
    assert not list(tmp_path.iterdir())


def test_every_command_with_a_result_has_a_row():
    with_json = {
        " ".join(words)
        for words, command in (parameters.values for parameters in COMMANDS)
        if words[0] != "export" and any(option.name == "json_" for option in command.params)
    }
    rows = {name.partition(" --")[0] for name in DOCUMENTS}
    assert rows == with_json
    assert {name.split()[0] for name in rows} | {"completion"} == set(IBLIP)
