"""Paths as a caller gives them: strings, or anything that `os.fspath` takes."""

from __future__ import annotations

import os
from pathlib import Path

from iblip.export.errors import OptionError
from iblip.export.messages import shown

PathLike = str | os.PathLike[str]


def path_from(value: PathLike, name: str) -> Path:
    """Returns the path; a `~` at its beginning is the user's home.

    Args:
        value: what the caller has given.
        name: of the argument, for messages.

    Raises:
        OptionError: it is no path, or empty.
    """
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            return expanded(path)
    raise OptionError(f"{name} is {shown(value)}; expected a path, as a str or a Path")


def expanded(path: str | Path) -> Path:
    """A path whose `~` is the user's home, as shells have it; they leave `--output=~/x` as it is.

    Where there is no such user, the path stays what it is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def settle_paths(options: object, *names: str) -> None:
    """Makes fields of a frozen dataclass `Path`s; for its `__post_init__`.

    Raises:
        OptionError: a field is neither a path nor `None`.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None:
            object.__setattr__(options, name, path_from(value, name))
