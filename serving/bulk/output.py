"""The file of answers: one line of JSON for each question, appended, and whole after any end.

A line is written by one call, so a process that is killed leaves at most the last one torn (a full
disk, or a machine that loses power, may do so). It is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iblip.export.errors import InputError, OptionError
from iblip.export.messages import shown
from iblip.export.system.files import write_whole
from iblip.export.system.json_text import parse_json
from iblip.export.system.locks import locked
from iblip.serving.bulk.rows import key_of

SYNC_S = 5.0
"""Seconds, at most, of answers that a machine without power loses."""

BLOCK = 1 << 16


class Output:
    """Answers in a file; see `open_output`.

    Attributes:
        present: keys of the questions whose answers are there.
    """

    def __init__(self, path: Path, descriptor: int, present: set[bytes]) -> None:
        self.present = present
        self._path = path
        self._descriptor = descriptor
        self._synced = time.monotonic()

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds one answer. Raises `OSError`, which names the file, where it cannot be written."""
        data = memoryview(_encoded(line))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.present.add(key_of(line["id"], line["prompt"]))
        if time.monotonic() - self._synced >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Waits until the disk has all answers."""
        os.fsync(self._descriptor)
        self._synced = time.monotonic()


def _encoded(line: Mapping[str, Any]) -> bytes:
    """A line of JSON. Half a surrogate pair, and a byte of a file's name that is not UTF-8, become
    JSON's own escape for them, so that the same id is read back."""
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


@contextmanager
def open_output(path: Path, job: Mapping[str, Any]) -> Iterator[Output]:
    """Opens the file, new or begun, for this process alone.

    Args:
        path: of the file. What the run is, is kept beside it, as `PATH.job`.
        job: what the run is, JSON-ready: who goes on with it must mean the same.

    Raises:
        OptionError: the file was begun by another run, or another process writes it.
        InputError: it holds something else.
        OSError: it cannot be written.
    """
    is_new = not path.exists()
    with locked(path, None) as held:
        if not held:
            raise OptionError(f"another process writes to {path}; name another output, or wait")
        try:
            _check_job(path, job)
            _cut_torn_line(path)
            present = set(_keys(path))
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                output = Output(path, descriptor, present)
                yield output
                output.sync()
            finally:
                os.close(descriptor)
        except BaseException:
            # A run that is refused leaves nothing.
            if is_new and path.exists() and not path.stat().st_size:
                _record(path).unlink(missing_ok=True)
                path.unlink()
            raise


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.job")


def _check_job(path: Path, job: Mapping[str, Any]) -> None:
    record = _record(path)
    given = json.loads(json.dumps(job))
    if not path.stat().st_size:  # nothing was answered by a run that may have been another
        write_whole(record, json.dumps(given, indent=1).encode() + b"\n")
        return
    if not record.exists():
        raise InputError(f"{path} has content, and no {record.name} beside it; name another")
    try:
        begun = parse_json(record.read_bytes())
    except ValueError as error:
        raise InputError(f"{record} is damaged: {error}") from error
    for name in given:
        if not isinstance(begun, dict) or begun.get(name) != given[name]:
            was = begun.get(name) if isinstance(begun, dict) else begun
            raise OptionError(
                f"{path} was begun with {name} {shown(was)}; this is {shown(given[name])}. Name "
                "another output, or ask as before."
            )


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _keys(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = parse_json(line)
                yield key_of(row["id"], row["prompt"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"line {number} of {path} is not an answer: {error!r}") from error
