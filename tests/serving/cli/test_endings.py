"""Commands that do not end by themselves, and those that have nowhere to write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from iblip.serving.cli.commands import Command, Commands
from tests.environments import REPOSITORY


class TestInterrupted:
    """By Ctrl-C, at different times."""

    def stop(self, tmp_path, is_time, *flags):
        """Status and standard error of a build; `is_time(lines)` says when it is interrupted."""
        with subprocess.Popen(
            [sys.executable, *flags, "-m", "iblip", "build", "--no-trace-cache"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            said = []
            for line in process.stderr:
                said.append(line)
                if is_time(said):
                    break
            process.send_signal(signal.SIGINT)
            said += process.stderr
        return process.returncode, "".join(said)

    def test_while_it_traces_nothing_is_written(self, tmp_path):
        status, said = self.stop(tmp_path, lambda lines: "trace " in lines[-1])
        assert status == 130
        assert said.splitlines()[-1].startswith("interrupted. Nothing was written to build/")
        assert "Traceback" not in said
        assert not list(tmp_path.glob("build/*"))

    def test_while_the_command_line_is_loaded_it_ends_at_once(self, tmp_path):
        def has_begun(lines):
            """The entry point has been loaded, and what it loads in turn has begun to be."""
            return lines[-2:-1] and lines[-2].endswith(" iblip.serving.start\n")

        status, said = self.stop(tmp_path, has_begun, "-X", "importtime")
        assert status == 130
        assert said.endswith("interrupted. Nothing was written.\n")
        assert "Traceback" not in said


def test_an_output_that_takes_nothing_is_one_line():
    for words in (["models"], ["models", "--json"], ["-h"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "iblip", *words],
                cwd=REPOSITORY,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            "error: the output cannot be written: No space left on device"
        ]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    @click.command(cls=Command)
    def command():
        (tmp_path / "nowhere" / "file").write_text("")

    result = CliRunner().invoke(Commands("group", commands={"command": command}), ["command"])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path}/nowhere/file: No such file or directory\n"


def test_an_error_of_the_system_about_no_file_is_a_bug():
    @click.command(cls=Command)
    def command():
        os.close(-1)

    group = Commands("group", commands={"command": command})
    assert isinstance(CliRunner().invoke(group, ["command"]).exception, OSError)
