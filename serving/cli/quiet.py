"""Loads the libraries that a build needs, and keeps them from writing over the progress."""

from __future__ import annotations

import os
import warnings

from iblip.export.progress import Progress, Silent


def quiet_libraries(progress: Progress | None = None) -> None:
    """Turns off the progress bars and warnings of transformers and of the hub client.

    Args:
        progress: told that torch and transformers are being loaded, which takes seconds.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    with (progress or Silent()).stage("load torch and transformers"):
        import torch  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
