"""Compiles `classification.c`, once for each compiler, into this user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from iblip.export.errors import ServingError
from iblip.export.system.cache_directory import cache_directory

SOURCE = Path(__file__).with_name("classification.c")

COMPILERS = ("cc", "gcc", "clang")

FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Werror")

COMPILE_S = 60.0
"""Seconds that a compiler may take; it needs a tenth of one."""


HARM = "a caller who asks for text with `classification` can end Triton"

REMEDY = "Install a C compiler (Debian: `apt install gcc libc6-dev`), and start the server again."


class NoLibraryError(ServingError):
    """The library cannot be had.

    Args:
        reason: in a few words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{HARM}: what prevents it was not compiled ({reason}). {REMEDY}")
        self.reason = reason


def classification_library() -> Path:
    """The library to load into Triton, compiled if it has not been.

    Raises:
        NoLibraryError: there is no compiler or no place for it, or it failed.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NoLibraryError(f"there is no C compiler: none of {', '.join(COMPILERS)}")
    folder = cache_directory("libraries")
    if folder is None:
        raise NoLibraryError("there is no folder for caches; set IBLIP_CACHE")
    path = folder.absolute() / f"classification-{_digest(compiler)}.so"
    if not path.is_file():
        _compile(compiler, path)
    return path


def _digest(compiler: str) -> str:
    """Of all that the library follows from; a compiler is told by its file, size and date."""
    status = Path(compiler).stat()
    facts = (os.path.realpath(compiler), status.st_size, status.st_mtime_ns, FLAGS)
    return hashlib.sha256(SOURCE.read_bytes() + repr(facts).encode()).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            draft = Path(scratch) / path.name
            subprocess.run(
                [compiler, *FLAGS, "-o", draft, SOURCE, "-ldl"],
                check=True,
                capture_output=True,
                text=True,
                timeout=COMPILE_S,
            )
            _try(draft)
            draft.replace(path)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise NoLibraryError(f"{compiler}: {lines[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLibraryError(str(error)) from error


def _try(library: Path) -> None:
    """Loads it into a process: where no code may run from that folder, the linker ignores it."""
    done = subprocess.run(
        ["/bin/sh", "-c", ":"],
        env={"LD_PRELOAD": f"./{library.name}"},
        cwd=library.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_S,
    )
    if done.returncode or done.stderr:
        raise NoLibraryError(f"it does not load: {done.stderr.strip() or done.returncode}")
