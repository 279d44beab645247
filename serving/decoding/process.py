"""One process that decodes images: started when it is needed, ended where an image keeps it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

import iblip
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import EngineError, InputError
from iblip.export.images import READINGS, Reading
from iblip.serving.decoding.settings import DecodingSettings
from iblip.serving.decoding.worker import HEAD, PIXELS, READY

logger = logging.getLogger(__name__)

MODULE = "iblip.serving.decoding.worker"

CLOSED = "the server is stopping"

START_S = 60.0
"""Seconds in which a new process must be ready."""


class DecoderProcess:
    """Decodes one image at a time. Not to be used from two threads at the same time.

    Args:
        preprocessing: the model's size and filter.
        settings: the limits.
    """

    def __init__(self, preprocessing: Preprocessing, settings: DecodingSettings) -> None:
        self._preprocessing, self._settings = preprocessing, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._busy, self._closed = threading.Lock(), False

    def decode(self, data: bytes, reading: Reading) -> npt.NDArray[np.uint8]:
        """The pixels of an encoded image, uint8 `[height, width, 3]`.

        Raises:
            InputError: it is not an image, a damaged one, or beyond the limits of bytes, pixels,
                time or memory.
            EngineError: the process ended or could not be started, or this has been closed.
        """
        with self._busy:
            return self._decode(data, reading)

    def _decode(self, data: bytes, reading: Reading) -> npt.NDArray[np.uint8]:
        process = self._process or self._start()
        seconds = self._settings.image_seconds

        def exchange() -> tuple[int, bytes]:
            _send(process, READINGS.index(reading), data)
            return _receive(process)

        reply, was_late = _timed(process, seconds, exchange)
        if reply is None or was_late:
            self._process = None
            status = _end(process)
            if self._closed:
                raise EngineError(CLOSED)
            if was_late:
                raise InputError(
                    f"the image of {len(data):,} bytes takes more than {seconds} seconds to be "
                    "decoded; make it smaller, or save it anew as JPEG or PNG"
                )
            logger.error("the process that decodes images ended with status %d", status)
            raise EngineError(f"the image of {len(data):,} bytes ended the process that decodes it")
        kind, payload = reply
        if kind != PIXELS:
            raise InputError(payload.decode(errors="replace"))
        size = (self._preprocessing.height, self._preprocessing.width, 3)
        return np.frombuffer(payload, np.uint8).reshape(size)

    def close(self) -> None:
        """Ends the process, also in the middle of an image."""
        self._closed, process = True, self._process
        if process is not None:
            process.kill()
        with self._busy:
            process, self._process = self._process, None
            if process is not None:
                _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that is ready."""
        if self._closed:
            raise EngineError(CLOSED)
        settings = {
            "preprocessing": asdict(self._preprocessing),
            "limits": asdict(self._settings.limits),
        }
        process = subprocess.Popen(
            [sys.executable or shutil.which("python3") or "python3", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(iblip.__file__).parents[1],
            # Threads of a library for arrays would take the memory that the image may have.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

        def greet() -> tuple[int, bytes]:
            stdin = _pipe(process.stdin)
            stdin.write(json.dumps(settings).encode() + b"\n")
            stdin.flush()
            return _receive(process)

        reply, was_late = _timed(process, START_S, greet)
        if was_late or reply is None or reply[0] != READY:
            status = _end(process)
            raise EngineError(f"the process that decodes images did not start (status {status})")
        self._process = process
        return process


def _timed(
    process: subprocess.Popen[bytes], seconds: float, exchange: Callable[[], tuple[int, bytes]]
) -> tuple[tuple[int, bytes] | None, bool]:
    """The reply, `None` where the process ended before; and whether it was ended for the time."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    reply = None
    try:
        with suppress(OSError, EOFError):
            reply = exchange()
    finally:
        timer.cancel()
        timer.join()
    return reply, late.is_set()  # which it may become until the timer has ended


def _send(process: subprocess.Popen[bytes], kind: int, payload: bytes) -> None:
    stdin = _pipe(process.stdin)
    stdin.write(HEAD.pack(kind, len(payload)))
    stdin.write(payload)
    stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    stdout = _pipe(process.stdout)
    kind, size = HEAD.unpack(_whole(stdout.read(HEAD.size), HEAD.size))
    return kind, _whole(stdout.read(size), size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise EOFError
    return data


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends a process; its exit status."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was still to be written
            _pipe(pipe).close()
    return process.wait()
