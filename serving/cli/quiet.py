"""Keeps other libraries from writing over this project's progress."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Turns off the progress bars and warnings of transformers and of the hub client.

    By the environment, so that neither is loaded before it is needed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if "transformers" in sys.modules:  # which has read the environment already
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
