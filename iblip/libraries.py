"""What libraries do around a call: they are not installed, or they print."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from iblip.export.system.installing import missing_package


@contextmanager
def installed(call: str) -> Iterator[None]:
    """Says how to install a library that the block imports and that is not there.

    Args:
        call: what the caller has called, for the message.

    Raises:
        MissingPackageError: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_package(error, call)
        if missing is None:
            raise
        raise missing from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers and the hub's client quiet within the block, and as they were after it."""
    from iblip.serving.cli.quiet import quiet_libraries

    environment = {name: os.environ.get(name) for name in VARIABLES}
    before = _settings() if "transformers" in sys.modules else None
    with warnings.catch_warnings():
        try:
            quiet_libraries()
            yield
        finally:
            for name, value in environment.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            if "transformers" in sys.modules:
                warnings.simplefilter("ignore")  # the hub's client warns of our own variable
                _restore(*(before or DEFAULTS))


VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")
"""What `quiet_libraries` may set of the environment."""

DEFAULTS = (logging.WARNING, True)
"""How transformers logs, and whether it shows bars, where nobody has said anything."""


def _settings() -> tuple[int, bool]:
    from transformers.utils import logging as transformers_logging

    return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()


def _restore(verbosity: int, bars: bool) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(verbosity)
    if bars:
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
