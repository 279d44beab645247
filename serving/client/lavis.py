"""LAVIS's `generate`, `predict_answers` and `predict_class`, with LAVIS's names and defaults.

They take `samples` as LAVIS does, except that an image may be anything the client takes and nothing
is moved to a device. They return a list as LAVIS does, which carries the whole answers as well.
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
from iblip.serving.wire.contract import ServerContract

AT_ONCE = 8
"""Most questions that the synchronous client asks at the same time."""

R = TypeVar("R")


class Asker(Protocol):
    """The part of `Client` that LAVIS's calls need; this module does not import the client."""

    def ask(self, image: Any, prompt: str, *, options: GenerationOptions) -> Answer:
        """The answer to one question; see `Client.ask`."""
        ...

    def contract(self) -> ServerContract:
        """What the server says about itself; see `Client.contract`."""
        ...


class AsyncAsker(Protocol):
    """The part of `AsyncClient` that LAVIS's calls need: `Asker` with `await`."""

    async def ask(self, image: Any, prompt: str, *, options: GenerationOptions) -> Answer:
        """The answer to one question; see `AsyncClient.ask`."""
        ...

    async def contract(self) -> ServerContract:
        """What the server says about itself; see `AsyncClient.contract`."""
        ...


class Lavis:
    """LAVIS's calls on a client: `client.lavis.generate({"image": …, "prompt": …})`."""

    def __init__(self, client: Asker) -> None:
        self._client = client

    def generate(self, samples: Samples, **arguments: Unpack[GenerateArguments]) -> Texts:
        """Texts, `num_captions` for each image.

        Raises:
            OptionError, InputError: an argument or a sample cannot be used.
            IblipError: as `Client.ask`.
        """
        return self._run(generate_batch(self._client.contract(), samples, arguments))

    def predict_answers(self, samples: Samples, **arguments: Unpack[PredictArguments]) -> Texts:
        """Short answers to `text_input`, one for each image; errors as in `generate`."""
        return self._run(answers_batch(self._client.contract(), samples, arguments))

    def predict_class(
        self,
        samples: Samples,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
    ) -> Ranks:
        """For each image, the indices of its candidates, the most likely first.

        Args:
            samples: see `Samples`; `prompt` is the instruction.
            candidates: texts for all images, or a list of texts for each image.
            n_segments: see `ranks_from_answer`; it changes the order as in LAVIS, and nothing else.

        Raises: as `generate`.
        """
        contract = self._client.contract()
        return self._run(class_batch(contract, samples, candidates, n_segments))

    def _run(self, batch: Batch[R]) -> R:
        def ask(question: Question) -> Answer:
            return self._client.ask(question.image, question.prompt, options=question.options)

        with ThreadPoolExecutor(min(AT_ONCE, len(batch.questions))) as threads:
            return batch.result(list(threads.map(ask, batch.questions)))


class AsyncLavis:
    """As `Lavis`, with `await`."""

    def __init__(self, client: AsyncAsker) -> None:
        self._client = client

    async def generate(self, samples: Samples, **arguments: Unpack[GenerateArguments]) -> Texts:
        """As `Lavis.generate`."""
        contract = await self._client.contract()
        return await self._run(generate_batch(contract, samples, arguments))

    async def predict_answers(
        self, samples: Samples, **arguments: Unpack[PredictArguments]
    ) -> Texts:
        """As `Lavis.predict_answers`."""
        contract = await self._client.contract()
        return await self._run(answers_batch(contract, samples, arguments))

    async def predict_class(
        self,
        samples: Samples,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
    ) -> Ranks:
        """As `Lavis.predict_class`."""
        contract = await self._client.contract()
        return await self._run(class_batch(contract, samples, candidates, n_segments))

    async def _run(self, batch: Batch[R]) -> R:
        answers = (
            self._client.ask(question.image, question.prompt, options=question.options)
            for question in batch.questions
        )
        return batch.result(await asyncio.gather(*answers))
