"""Finds the directories of this user's caches."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from iblip.export.system.paths import expanded

logger = logging.getLogger(__name__)

VARIABLE = "IBLIP_CACHE"
"""Environment variable with the directory of this project's caches."""


def cache_directory(name: str) -> Path | None:
    """Returns the directory of a cache: in `$IBLIP_CACHE`, or in the platform's place for caches.

    `None` if there is neither, for a user without a home, as in containers.

    Args:
        name: of the cache (`engines`, `traces`, `providers`).
    """
    if given := os.environ.get(VARIABLE):
        return expanded(given) / name
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "iblip" / name
    try:
        home = Path.home()
    except RuntimeError:
        return None
    caches = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return caches / "iblip" / name


def default_directory() -> Path | None:
    """Returns this user's engine cache; `None` if there is no place for one."""
    return cache_directory("engines")
