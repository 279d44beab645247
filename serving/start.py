"""The entry points of `iblip` and `export`, which answer to Ctrl-C before they import anything.

Until the command line is loaded, nothing has been written, and Python would show a traceback.
"""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 130  # as `iblip.serving.cli.commands` has it, which is not imported yet


def _end(number: int, frame: object) -> None:
    os.write(2, b"\ninterrupted. Nothing was written.\n")
    os._exit(_INTERRUPTED)


def _load() -> None:
    """Loads the command line, during which Ctrl-C ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it may be ignored, as in the background
        signal.signal(signal.SIGINT, _end)
    import iblip.serving.cli  # noqa: F401

    signal.signal(signal.SIGINT, before)


def main() -> None:
    """The command `iblip`."""
    _load()
    from iblip.serving.cli import main as run

    run()


def export_main() -> None:
    """The command `export`."""
    _load()
    from iblip.serving.cli import export_main as run

    run()
