"""Several processes that decode images, and the pixels of those that may come again."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from iblip.engines.vision_cache.memory import RecentArrays
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError
from iblip.export.images import Reading
from iblip.serving.decoding.process import DecoderProcess
from iblip.serving.decoding.settings import DecodingSettings

Pixels = npt.NDArray[np.uint8]

MIB = 1 << 20


class Decoder(Protocol):
    """Decodes one image at a time; see `DecoderProcess`."""

    def decode(self, data: bytes, reading: Reading) -> Pixels:
        """Pixels, uint8 `[height, width, 3]`."""
        ...

    def close(self) -> None:
        """Ends it."""


@dataclass(frozen=True, kw_only=True)
class DecodingStatus:
    """What has been decoded since the start.

    Attributes:
        decoded: images.
        remembered: images whose pixels were there from before.
        refused: images that could not be decoded, or not within the limits.
    """

    decoded: int = 0
    remembered: int = 0
    refused: int = 0


class Decoders:
    """Decodes the images of several requests at the same time.

    Args:
        preprocessing: the model's size and filter.
        settings: the limits, and how many processes.
        make: makes a decoder.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        settings: DecodingSettings,
        make: Callable[[Preprocessing, DecodingSettings], Decoder] = DecoderProcess,
    ) -> None:
        self.count = settings.workers
        self._decoders = [make(preprocessing, settings) for _ in range(self.count)]
        # The last that was used is the next: processes that are not needed are not started.
        self._free: queue.LifoQueue[Decoder] = queue.LifoQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self._memory = RecentArrays[Pixels](settings.image_cache_mib * MIB)
        self._counts = dict.fromkeys(("decoded", "remembered", "refused"), 0)
        self._lock = threading.Lock()

    def pixels(self, images: Sequence[bytes], reading: Reading) -> Pixels:
        """The pixels of images, uint8 `[images, height, width, 3]`.

        Waits for a free process.

        Raises:
            InputError: one cannot be decoded, or not within the limits.
            EngineError: a process ended, or could not be started.
        """
        decoder = self._free.get()
        try:
            found = []
            for number, image in enumerate(images, start=1):
                try:
                    found.append(self._one(decoder, image, reading))
                except InputError as error:
                    self._count("refused")
                    place = f"image {number} of {len(images)}: " if len(images) > 1 else ""
                    raise InputError(f"{place}{error}") from error
            return np.stack(found)
        finally:
            self._free.put(decoder)

    def status(self) -> DecodingStatus:
        """What has been decoded."""
        with self._lock:
            return DecodingStatus(**self._counts)

    def close(self) -> None:
        """Ends the processes, and with errors what they are decoding."""
        for decoder in self._decoders:
            decoder.close()

    def _one(self, decoder: Decoder, image: bytes, reading: Reading) -> Pixels:
        key = hashlib.sha256(reading.encode() + b"\0" + image).digest()
        found = self._memory.get(key)
        if found is not None:
            self._count("remembered")
            return found
        found = decoder.decode(image, reading)
        self._count("decoded")
        self._memory.put(key, found)
        return found

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
