"""The images of a request as pixels: decoded with the client's own code, away from the loop.

An address is `data:`, or `https:` of a host that the operator has allowed. What names a file is
never read: it would be one of this machine's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from iblip.engines.text.checks import check_images
from iblip.export.errors import InputError
from iblip.export.images import ImageSource, Reading
from iblip.serving.client.image_urls import ImageURLs, is_web_address
from iblip.serving.client.messages import pixels_of_request
from iblip.serving.wire.contract import ServerContract

FETCHES = 16
"""Images that are fetched at the same time; the others wait."""

NONE_ALLOWED = (
    "an image is an https: address, and this gateway fetches none (--allow-image-host HOST). Send "
    "it as data:image/jpeg;base64,…"
)


class Images:
    """Decodes the images of requests, and fetches those from allowed hosts.

    Args:
        urls: what may be fetched; `None` is nothing.
    """

    def __init__(self, urls: ImageURLs | None) -> None:
        self._urls = urls
        self._decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")

    async def pixels(
        self, addresses: Sequence[str], contract: ServerContract, reading: Reading
    ) -> npt.NDArray[np.uint8]:
        """The images as a server takes them, uint8 `[images, height, width, 3]`.

        Raises:
            InputError: an address is not allowed, an image cannot be fetched or decoded, or there
                are none or more than the server takes.
        """
        check_images(len(addresses), contract.limits.images)
        for address in addresses:
            self._check(address)
        loop = asyncio.get_running_loop()
        sources: list[ImageSource] = list(
            await asyncio.gather(*(self._source(address) for address in addresses))
        )
        return await loop.run_in_executor(
            self._decoders, pixels_of_request, sources, contract, None, reading
        )

    def close(self) -> None:
        """Ends the threads, once they have done what they do."""
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, address: str) -> None:
        if address.startswith("data:"):
            return
        if not is_web_address(address):
            raise InputError(
                "an image is neither a data: nor an https: address; expected "
                "data:image/jpeg;base64,…"
            )
        if self._urls is None:
            raise InputError(NONE_ALLOWED)

    async def _source(self, address: str) -> str | bytes:
        if self._urls is None or not is_web_address(address):
            return address
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._fetchers, self._urls.fetch, address)
