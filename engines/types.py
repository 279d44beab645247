"""Types that all engines share: feeds, tokenised prompts, runners. Knows numpy only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol, Self

import numpy.typing as npt

from iblip.export.artifact.contract import Contract

Feed = Mapping[str, npt.NDArray[Any]]
"""Input tensors by name."""


@dataclass(frozen=True)
class PromptIds:
    """A prompt as the language model reads it: text, and the places of its images.

    Attributes:
        ids: token ids of the text, special tokens included.
        places: for each image, in order, how many of the ids come before it.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...] = (0,)

    @property
    def pieces(self) -> list[slice]:
        """Slices of the ids before the first image, between each two, and after the last."""
        borders = [0, *self.places, len(self.ids)]
        return [slice(*pair) for pair in pairwise(borders)]

    def positions(self, queries: int) -> int:
        """The prompt's length in positions if each image takes `queries` of them."""
        return len(self.ids) + queries * len(self.places)

    def fill(self, *placeholders: int) -> list[int]:
        """The ids, with the placeholders inserted at the place of each image."""
        first, *others = self.pieces
        ids = list(self.ids[first])
        for piece in others:
            ids += [*placeholders, *self.ids[piece]]
        return ids


class Runner(Protocol):
    """Runs one graph. A context manager: entering loads the engine, leaving frees it.

    `infer` checks the feed against `contract` first and raises `ContractError`; a failure inside
    the engine raises `EngineError`.
    """

    @property
    def contract(self) -> Contract:
        """The graph's inputs and outputs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def infer(self, feed: Feed, keep: Collection[str] = ()) -> dict[str, npt.NDArray[Any]]:
        """Every output by name, for these inputs: numpy arrays.

        Those named in `keep` may instead stay where the engine put them: they have a dtype and a
        shape, are copied when numpy reads them, and can be fed to a runner as they are.
        """
        ...
