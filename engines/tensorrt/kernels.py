"""The kernels that TensorRT-RTX compiles for a plan, kept from one start to the next."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from iblip.export.system.files import write_whole

logger = logging.getLogger(__name__)

FILE = "kernels.cache"


class KernelCache:
    """An `IRuntimeCache` of TensorRT-RTX, shared by all contexts of a plan, and its file.

    It must outlive the contexts. The calling thread uses the plan's GPU, by which TensorRT-RTX
    tells whether the kernels in the file are for it.

    Args:
        folder: where the file is kept; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Has a context that is created from an `IRuntimeConfig` take and leave kernels here."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        if not config.set_runtime_cache(self._cache):
            logger.warning("TensorRT-RTX takes no cache: it compiles kernels at every start")

    def save(self) -> None:
        """Writes the kernels, if there are new ones. A file that cannot be written is no error."""
        if self._cache is None:
            return
        try:
            content = bytes(memoryview(self._cache.serialize()))
            if content != self._saved:
                write_whole(self._path, content)
                self._saved = content
        except (OSError, TypeError) as error:  # TypeError: it serialised nothing
            logger.warning("what TensorRT-RTX compiled cannot be kept in %s: %s", self._path, error)

    def _load(self) -> None:
        try:
            content = self._path.read_bytes()
        except OSError:
            return
        if self._cache.deserialize(content):
            self._saved = content
        else:
            logger.info("%s is of another GPU, driver or TensorRT-RTX: compiled anew", self._path)
