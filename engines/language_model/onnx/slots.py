"""What a batching engine wants of a language model, and the slots that its sequences live in.

Knows nothing of graphs, text, options or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from iblip.engines.types import PromptIds

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Prompt:
    """A prompt on its way into a slot.

    Attributes:
        embeds: `[1, positions, hidden]`, of visual prompt and text.
        done: how many of its positions have been read.
    """

    embeds: Array
    done: int = 0

    @property
    def positions(self) -> int:
        """Its length."""
        return int(self.embeds.shape[1])


@dataclass(eq=False)
class Slot:
    """One sequence within a model.

    Attributes:
        row: its row of the model's caches. It changes as other sequences leave.
        length: positions of the decoder's cache that it fills.
        prompt: what it began with; the forks of a sequence share it.
        source_length: positions of an encoder's output that it sees.
        tokens: read after the prompt; their keys and values are in the cache.
    """

    row: int
    length: int = 0
    prompt: Prompt | None = None
    source_length: int = 1
    tokens: list[int] = field(default_factory=list)

    def take_back(self, count: int) -> None:
        """Forgets its last tokens. Their keys and values stay, unread, until others come there."""
        del self.tokens[len(self.tokens) - count :]
        self.length -= count


class BatchModel(Protocol):
    """A language model that continues many sequences at once, each in its slot. Not thread-safe."""

    @property
    def capacity(self) -> int:
        """How many sequences it holds."""
        ...

    @property
    def used(self) -> int:
        """How many of them are taken. May be asked from any thread."""
        ...

    @property
    def positions(self) -> int:
        """How many positions a sequence may have."""
        ...

    @property
    def start_token(self) -> int | None:
        """What an answer begins with, where the prompt's last position does not give its first."""
        ...

    def acquire(self) -> Slot:
        """An empty slot; there must be one."""
        ...

    def release(self, slot: Slot) -> None:
        """Frees a slot. Another may move into its row."""
        ...

    def read(self, visual_prompt: Array, prompt: PromptIds) -> Prompt:
        """Puts a visual prompt `[images, queries, hidden]`, of any float dtype, into a prompt."""
        ...

    def prefill(self, slot: Slot, prompt: Prompt, limit: int) -> Array | None:
        """Reads at most `limit` more positions of the prompt into the slot (an encoder reads all).

        Returns the logits `[vocab]` of the answer's first token, once the whole is read; none
        where the answer has a `start_token`.
        """
        ...

    def step(self, tokens: Mapping[Slot, int]) -> Array:
        """Adds a token to each of these; the logits `[len(tokens), vocab]` of the next."""
        ...

    def fork(self, source: Slot, target: Slot) -> None:
        """Makes `target` what `source` is, copying no more than where they differ."""
        ...

    def close(self) -> None:
        """Frees the graphs and the slots."""
        ...


def shared_positions(source: Slot, target: Slot) -> int:
    """How many positions of two slots hold the same, from the first on."""
    if source.prompt is None or source.prompt is not target.prompt:
        return 0
    shared = source.length - len(source.tokens)  # of the prompt
    for mine, yours in zip(source.tokens, target.tokens, strict=False):
        if mine != yours:
            break
        shared += 1
    return shared
