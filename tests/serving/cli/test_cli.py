"""The command line: its tables, its help, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import weakref
from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from iblip.engines.language_model.option_kinds import Biases, Choice, Flag, Integer, Number, Schema
from iblip.engines.language_model.option_table import OPTIONS
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import OptionError
from iblip.serving.cli import EXPORT, IBLIP, Commands, export, iblip
from iblip.serving.cli.ask import command as ask
from iblip.serving.cli.options import generation_options, given_from_flags, options_from_flags

HELPS = [
    *([name] for name in IBLIP),
    *(["export", name] for name in EXPORT),
    ["export"],
    [],
]

ASK_ALL = f"""
import json, sys
from click.testing import CliRunner
from iblip.serving.cli import iblip
heavy = {{"numpy", "torch", "transformers", "onnx", "onnxruntime", "tritonclient", "PIL", "grpc"}}
for arguments in {HELPS!r}:
    done = CliRunner().invoke(iblip, [*arguments, "--help"])
    print(json.dumps([done.exit_code, sorted(heavy & set(sys.modules))]))
    for name in heavy & set(sys.modules):  # the next command is not to blame
        del sys.modules[name]
"""


@pytest.fixture(scope="module")
def helps():
    """Of each command's help: its status, and what heavy modules it imported. All in one process
    that has imported nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_ALL], capture_output=True, text=True, check=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(map(tuple, HELPS), said, strict=True))


@pytest.mark.parametrize("arguments", HELPS, ids=lambda words: " ".join(words) or "iblip")
def test_help_imports_nothing_heavy(arguments, helps):
    assert helps[tuple(arguments)] == [0, []]


@pytest.mark.parametrize("group", [iblip, export])
def test_every_command_of_the_table_is_there_with_its_help(group):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command.get_short_help_str()


def test_an_unknown_command_is_a_wrong_call():
    done = CliRunner().invoke(iblip, ["srve"])
    assert done.exit_code == 2
    assert "there is no command 'srve'. Did you mean 'serve'?" in done.stderr


def failing(error):
    group = Commands("group")

    @group.command()
    def run():
        raise error

    return CliRunner().invoke(group, ["run"])


def test_our_errors_are_one_line_and_their_own_status():
    done = failing(OptionError("top_p is 3"))
    assert (done.exit_code, done.stderr) == (2, "error: top_p is 3\n")


def test_a_fault_of_ours_keeps_its_traceback():
    done = failing(ZeroDivisionError("oops"))
    assert isinstance(done.exception, ZeroDivisionError)


def test_every_option_of_an_answer_is_a_flag():
    flags = [parameter.name for parameter in ask.params]
    names = [field.name for field in fields(GenerationOptions)]
    assert [name for name in flags if name in names] == names


def words(option):
    """The option given on a command line, and the value that is meant."""
    flag = option.flag or "--" + option.name.replace("_", "-")
    match option.kind:
        case Integer():
            return [flag, "7"], 7
        case Number():
            return [flag, "0.25"], 0.25
        case Flag():
            return [flag, "yes"], True
        case Choice():
            word, value = list(option.kind.words.items())[-1]
            return [flag, word], value
        case Biases():
            return [flag, "3", "-1.5", flag, "4", "2"], {3: -1.5, 4: 2.0}
        case Schema():
            return [flag, '{"type": "integer"}'], {"type": "integer"}
    return [flag, "5", flag, "6"], (5, 6) if option.name == "stop_token_ids" else ("5", "6")


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_flag_is_read_as_its_option(option):
    given = []

    @click.command()
    @generation_options
    def command(**flags):
        given.append(given_from_flags(flags))

    arguments, value = words(option)
    for line in (arguments, []):
        done = CliRunner().invoke(command, line)
        assert done.exit_code == 0, done.output
    assert given == [{option.name: value}, {}]


def test_help_names_flags_and_defaults():
    text = " ".join(CliRunner().invoke(iblip, ["ask", "--help"]).output.split())
    for line in (
        "--max-new-tokens INTEGER Most tokens of the answer. Default: the checkpoint's own.",
        "--min-length INTEGER Alternative to --min-new-tokens, counted as --max-length is.",
        "--early-stopping [true|false|never] When a beam search ends. Default: false.",
        "--truncation [left|right] Cut an instruction",
        "--candidate TEXT Answers to choose from",
        "--logit-bias <INTEGER FLOAT>... Token ids, and what is added to the logit of each. Rep",
    ):
        assert line in text
    assert not [option.name for option in OPTIONS.values() if f"`{option.name}`" in text]


def test_flags_become_options_and_only_those_given_count():
    none = {name: () if option.kind.json else None for name, option in OPTIONS.items()}
    assert options_from_flags(none) == GenerationOptions()
    flags = {"top_k": 3, "stop": ("a", "b"), "logit_bias": ((7, -2.0), (9, 1.5))}
    assert options_from_flags(none | flags) == GenerationOptions(
        top_k=3, stop=("a", "b"), logit_bias={7: -2.0, 9: 1.5}
    )
    beams = {"num_beams": 5, "early_stopping": "never", "stop_token_ids": (4,)}
    assert options_from_flags(none | beams) == GenerationOptions(
        num_beams=5, early_stopping="never", stop_token_ids=(4,)
    )


def test_what_is_no_build_is_said(tmp_path):
    done = CliRunner().invoke(iblip, ["serve", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path} is not a build: it has no manifest.json")


def test_an_interrupt_in_a_callback_ends_a_command_too():
    """Python itself prints it and goes on."""
    group = Commands("group")

    @group.command()
    def wait():
        held = threading.Event()
        reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
        del held
        assert reference() is None
        threading.Event().wait(60)

    done = CliRunner().invoke(group, ["wait"])
    assert (done.exit_code, done.stderr.strip()) == (130, "interrupted.")
