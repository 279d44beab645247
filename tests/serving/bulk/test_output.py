"""The file of answers, whatever has ended the process that wrote it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from iblip.export.errors import InputError, OptionError
from iblip.serving.bulk.output import open_output
from iblip.serving.bulk.rows import key_of

JOB = {"build": {"name": "small"}, "options": {"n": 1}}


def line(number, text="é\n"):
    return {"id": str(number), "prompt": "What?", "text": text}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


def write(path, *numbers, job=JOB):
    with open_output(path, job) as output:
        before = set(output.present)
        for number in numbers:
            output.append(line(number))
    return before


def ids(path):
    return [json.loads(text)["id"] for text in path.read_text().splitlines()]


def test_answers_are_appended_and_known_the_next_time(path):
    assert write(path, 1, 2) == set()
    assert write(path, 3) == {key_of("1", "What?"), key_of("2", "What?")}
    assert ids(path) == ["1", "2", "3"]
    assert json.loads(path.read_text().splitlines()[0]) == line(1)


def test_a_full_disk_names_the_file(path, monkeypatch):
    def refuse(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_output(path, JOB) as output:
        monkeypatch.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space left on device: ") as refused:
            output.append(line(1))
    assert refused.value.filename == str(path)


def test_an_id_that_is_not_unicode_is_known_the_next_time(path):
    name, prompt = "\udcff \U0001f600.png", "half of a pair: \ud83d"
    with open_output(path, JOB) as output:
        output.append({"id": name, "prompt": prompt, "text": ""})
    path.read_text(encoding="utf-8")
    assert write(path) == {key_of(name, prompt)}


@pytest.mark.parametrize("left", range(1, 30, 7))
def test_a_torn_line_is_cut_off(path, left):
    write(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:left])
    assert len(write(path, 3)) == 2
    assert ids(path) == ["1", "2", "3"]


@pytest.mark.parametrize("torn", [b"{", b'{"id": "' + b"x" * 200_000])
def test_a_file_of_one_torn_line_is_empty_again(path, torn):
    write(path)
    path.write_bytes(torn)
    assert write(path, 1) == set()
    assert ids(path) == ["1"]


def test_a_line_that_is_none_is_named(path):
    write(path, 1)
    path.write_text(path.read_text() + '{"id": 3}\n')
    with pytest.raises(InputError, match=r"line 2 of .*out\.jsonl is not an answer"):
        write(path, 2)


def test_a_file_of_something_else_is_left_alone(path):
    path.write_text("my notes\n")
    with pytest.raises(InputError, match=r"has content, and no out\.jsonl\.job beside it"):
        write(path, 1)
    assert path.read_text() == "my notes\n"


def test_another_run_is_not_mixed_in(path):
    write(path, 1)
    with pytest.raises(OptionError, match=r"was begun with options .*; this is .*'n': 2"):
        write(path, 2, job={**JOB, "options": {"n": 2}})
    assert ids(path) == ["1"]


HOLDER = """
import sys, time
from pathlib import Path
from iblip.serving.bulk.output import open_output
with open_output(Path(sys.argv[1]), {"build": {"name": "small"}, "options": {"n": 1}}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_write_one_file_and_a_killed_one_leaves_it(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OptionError, match="another process writes to"):
            write(path, 1)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    write(path, 1)
    assert ids(path) == ["1"]
