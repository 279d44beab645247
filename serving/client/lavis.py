"""LAVIS's calls: `generate`, `predict_answers` and `predict_class`, with its names and defaults.

They take `samples` as LAVIS has them, but an image is whatever the client takes, and nothing is
moved to a device. What they return is a list as LAVIS returns it, with the whole answers beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, Unpack

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer
from iblip.serving.client.lavis_batches import (
    Batch,
    GenerateArguments,
    PredictArguments,
    Question,
    Ranks,
    Samples,
    Texts,
    answers_batch,
    class_batch,
    generate_batch,
)
from iblip.serving.wire import ServerContract

AT_ONCE = 8
"""Questions that the synchronous client asks at a time."""

R = TypeVar("R")


class Asks(Protocol):
    """A client that LAVIS's calls can be made on."""

    def ask(self, image: Any, prompt: str, *, options: GenerationOptions) -> Answer:
        """Asks one question; see `Client.ask`."""
        ...

    def contract(self) -> ServerContract:
        """See `Client.contract`."""
        ...


class AsksAsync(Protocol):
    """The same with `await`."""

    async def ask(self, image: Any, prompt: str, *, options: GenerationOptions) -> Answer:
        """Asks one question; see `AsyncClient.ask`."""
        ...

    async def contract(self) -> ServerContract:
        """See `AsyncClient.contract`."""
        ...


class Lavis:
    """LAVIS's calls on a client: `client.lavis.generate({"image": …, "prompt": …})`."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    def generate(self, samples: Samples, **arguments: Unpack[GenerateArguments]) -> Texts:
        """Texts, `num_captions` an image.

        Raises:
            OptionError, InputError: an argument or a sample does not fit.
            IblipError: as `Client.ask`.
        """
        return self._asked(generate_batch(self._client.contract(), samples, arguments))

    def predict_answers(self, samples: Samples, **arguments: Unpack[PredictArguments]) -> Texts:
        """Short answers to `text_input`, one an image; errors as of `generate`."""
        return self._asked(answers_batch(self._client.contract(), samples, arguments))

    def predict_class(
        self,
        samples: Samples,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
    ) -> Ranks:
        """Of each image, the indices of its candidates, the likeliest first.

        Args:
            samples: see `Samples`; `prompt` is the instruction.
            candidates: texts for all images, or a list of them for each.
            n_segments: see `ranks_from_answer`; the server needs no parts.

        Raises: as `generate`.
        """
        contract = self._client.contract()
        return self._asked(class_batch(contract, samples, candidates, n_segments))

    def _asked(self, batch: Batch[R]) -> R:
        def ask(one: Question) -> Answer:
            return self._client.ask(one.image, one.prompt, options=one.options)

        with ThreadPoolExecutor(min(AT_ONCE, len(batch.questions))) as threads:
            return batch.result(list(threads.map(ask, batch.questions)))


class AsyncLavis:
    """As `Lavis`, with `await`."""

    def __init__(self, client: AsksAsync) -> None:
        self._client = client

    async def generate(self, samples: Samples, **arguments: Unpack[GenerateArguments]) -> Texts:
        """As `Lavis.generate`."""
        contract = await self._client.contract()
        return await self._asked(generate_batch(contract, samples, arguments))

    async def predict_answers(
        self, samples: Samples, **arguments: Unpack[PredictArguments]
    ) -> Texts:
        """As `Lavis.predict_answers`."""
        contract = await self._client.contract()
        return await self._asked(answers_batch(contract, samples, arguments))

    async def predict_class(
        self,
        samples: Samples,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
    ) -> Ranks:
        """As `Lavis.predict_class`."""
        contract = await self._client.contract()
        return await self._asked(class_batch(contract, samples, candidates, n_segments))

    async def _asked(self, batch: Batch[R]) -> R:
        asked = (
            self._client.ask(one.image, one.prompt, options=one.options) for one in batch.questions
        )
        return batch.result(await asyncio.gather(*asked))
