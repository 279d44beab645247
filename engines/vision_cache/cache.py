"""Images that have been encoded, by what they are encoded from."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.vision_cache.directory import MIB, CacheDirectory
from iblip.engines.vision_cache.memory import RecentArrays
from iblip.export.artifact.manifest import Manifest

Array = npt.NDArray[Any]

MEMORY_BYTES = 64 * MIB
"""Of a process, as of Triton's response cache (`ServerOptions.cache_mib`); of a GPU's memory where
the embeddings stay there."""


@dataclass(frozen=True, kw_only=True)
class VisionCacheStatus:
    """What a cache has done.

    Attributes:
        hits: images that were found.
        misses: images that were not.
        bytes: of the files of its directory; 0 without one.
    """

    hits: int = 0
    misses: int = 0
    bytes: int = 0


class VisionCache:
    """The embeddings of images that one vision encoder has encoded. Thread-safe.

    A key is the sha256 of the pixels with their shape and dtype, of the graph with its weights,
    and of the engine's kind and precision: what decides the embeddings. So builds may share a
    directory, and a build that is made again finds what it has encoded before.

    Args:
        manifest: of the build.
        memory_bytes: for embeddings in this process; 0 is none.
        directory: holds them on the disk, too.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        memory_bytes: int = MEMORY_BYTES,
        directory: CacheDirectory | None = None,
    ) -> None:
        record = manifest.components["vision_encoder"]
        encoder = (record.graphs["model"].digest, record.engine.kind, record.precision)
        self._encoder = json.dumps(encoder).encode()
        self._memory: RecentArrays[Array] = RecentArrays(memory_bytes)
        self._directory = directory
        self._hits = self._misses = 0
        self._lock = threading.Lock()

    def key(self, pixels: Array) -> str:
        """Of one image, in hexadecimal.

        Args:
            pixels: `[height, width, 3]`.
        """
        described = repr((pixels.shape, pixels.dtype.str)).encode()
        digest = hashlib.sha256(self._encoder + described)
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def find(self, key: str) -> Array | None:
        """`image_embeds` `[1, patches, d_vision]` of an image; `None` where it is not there."""
        found = self._memory.get(key)
        if found is None and self._directory is not None:
            found = self._directory.read(key)
            if found is not None:
                self._memory.put(key, found)
        with self._lock:
            self._hits += found is not None
            self._misses += found is None
        return found

    def add(self, key: str, embeds: Array) -> None:
        """Holds the embeddings of an image.

        Args:
            key: of the image.
            embeds: `image_embeds` `[1, patches, d_vision]`, wherever they lie.
        """
        self._memory.put(key, embeds)
        if self._directory is not None:
            self._directory.write(key, np.asarray(embeds))

    def status(self) -> VisionCacheStatus:
        """What it has done until now."""
        size = 0 if self._directory is None else self._directory.size
        with self._lock:
            return VisionCacheStatus(hits=self._hits, misses=self._misses, bytes=size)

    def clear(self) -> None:
        """Frees the memory; the files stay."""
        self._memory.clear()
