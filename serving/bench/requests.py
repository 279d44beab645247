"""What is asked: images of noise or given ones, prompts and answers of mixed lengths."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import InputError, OptionError
from iblip.serving.bulk.rows import BulkRow, prompts_of
from iblip.serving.client.messages import pixels_of_request
from iblip.serving.wire.contract import ServerContract

MOST_ROWS = 256
"""Questions of an input that are used; their images are in memory while they are asked."""

_SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Lengths, each equally likely.

    Attributes:
        least, most: both included.

    Raises:
        OptionError: `least` is below 1 or above `most`.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise OptionError(f"the lengths are {self}; expected 1 or more, the shorter first")

    @classmethod
    def parse(cls, text: str) -> Span:
        """Reads `32` or `8-128`. Raises `OptionError`."""
        match = _SPAN.fullmatch(text.strip())
        if match is None:
            raise OptionError(f"the length is {text[:80]!r}; expected N or N-M, such as 8-128")
        return cls(least=int(match[1]), most=int(match[2] or match[1]))

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What requests are made of.

    Attributes:
        image: that all ask about; `None` is noise, another image for each request, so that no
            server can have encoded it before.
        rows: questions that are asked in turn, instead of `image`; `None` is none.
        prompt: of requests whose row has none.
        words: of a prompt, which is repeated or cut to this length; `None` leaves it as it is.
        tokens: of an answer, unless its row has options for that; `None` lets answers end by
            themselves.
    """

    image: Path | None = None
    rows: Iterable[BulkRow] | None = None
    prompt: str = "Describe the image."
    words: Span | None = None
    tokens: Span | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        pixels: uint8 `[images, height, width, 3]`, at the server's own size.
        prompt: the question.
        options: how to generate.
    """

    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: GenerationOptions


@dataclass(frozen=True, kw_only=True)
class _Question:
    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Requests:
    """Makes requests by their number; the same number is always the same request.

    Images are decoded and resized here, once, so that sending a request costs the generator little.

    Args:
        mix: what they are made of.
        contract: of the server that is asked.

    Raises:
        InputError: an image or a row cannot be used, or the rows have no question.
        OptionError: the options of a row cannot be used.
    """

    def __init__(self, mix: Mix, contract: ServerContract) -> None:
        self._mix = mix
        self._is_noise = mix.image is None and mix.rows is None
        self._questions = _questions(mix, contract)

    def __getitem__(self, number: int) -> Request:
        """The request of a number; negative ones are of the warm-up."""
        chance = random.Random(number)
        question = self._questions[number % len(self._questions)]
        pixels = question.pixels
        if self._is_noise:
            pixels = pixels.copy()
            pixels.reshape(-1)[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        prompt, options = question.prompt, dict(question.options)
        if self._mix.words is not None:
            prompt = _with_words(prompt, _drawn(self._mix.words, chance))
        if self._mix.tokens is not None and not options.keys() & {"max_new_tokens", "candidates"}:
            tokens = _drawn(self._mix.tokens, chance)
            options = {"min_new_tokens": tokens, **options, "max_new_tokens": tokens}
        return Request(
            pixels=pixels, prompt=prompt, options=GenerationOptions.from_mapping(options)
        )


def _questions(mix: Mix, contract: ServerContract) -> list[_Question]:
    if mix.rows is None:
        return [_Question(pixels=_pixels(mix.image, contract), prompt=mix.prompt)]
    questions = list(islice(_of_rows(mix.rows, mix.prompt, contract), MOST_ROWS))
    if not questions:
        raise InputError("the input has no rows; expected at least one image")
    return questions


def _pixels(image: Any, contract: ServerContract) -> npt.NDArray[np.uint8]:
    if image is not None:
        return pixels_of_request(image, contract)
    size = contract.preprocessing
    chance = np.random.default_rng(0)
    return chance.integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)


def _of_rows(rows: Iterable[BulkRow], prompt: str, contract: ServerContract) -> Iterator[_Question]:
    for row in rows:
        if row.fault is not None:
            raise row.fault
        try:
            pixels = pixels_of_request(row.image, contract)
            GenerationOptions.from_mapping(row.options)
        except (InputError, OptionError) as fault:
            raise type(fault)(f"{row.id}: {fault}") from fault
        for own in prompts_of(row, (prompt,)):
            yield _Question(pixels=pixels, prompt=own, options=row.options)


def _drawn(span: Span, chance: random.Random) -> int:
    return chance.randint(span.least, span.most)


def _with_words(prompt: str, count: int) -> str:
    return " ".join(islice(cycle(prompt.split() or ["what?"]), count))
