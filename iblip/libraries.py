"""What libraries do around a call: they are not installed, or they print."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from iblip.export.errors import IblipError


@contextmanager
def installed(call: str) -> Iterator[None]:
    """Says how to install a library that the block imports and that is not there.

    Args:
        call: what the caller has called, for the message.

    Raises:
        IblipError: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "iblip").partition(".")[0] == "iblip":
            raise
        raise IblipError(
            f"{call} needs {error.name}, which is not installed. Run `pip install 'iblip[cpu]'`, "
            "or with an NVIDIA GPU `pip install 'iblip[gpu]'`."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers and the hub's client quiet within the block, and as they were after it."""
    from transformers.utils import logging

    from iblip.serving.cli.quiet import quiet_libraries

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        quiet_libraries()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
