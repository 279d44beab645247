"""The interface of a batched language model, and the slots that hold its sequences.

This module knows nothing of graphs, text, options or requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from iblip.engines.types import PromptIds

Array = npt.NDArray[Any]


@dataclass(eq=False)
class Prompt:
    """A prompt that is being read into a slot, a piece at a time.

    Attributes:
        embeds: `[1, positions, hidden]`, of visual prompt and text.
        ids: int64 `[1, positions]`, the text's tokens, whose rows of `embeds` are not read, and -1
            where the visual prompt is; `None` if `embeds` has them all.
        content: what is at each position: a token, or the digest of the image that it is of;
            empty if no other prompt may begin with what this one has read.
        done: how many of its positions have been read, or found in a slot.
    """

    embeds: Array
    ids: Array | None = None
    content: Sequence[int | bytes] = ()
    done: int = 0

    @property
    def positions(self) -> int:
        """Its length in positions."""
        return int(self.embeds.shape[1])


@dataclass(eq=False)
class Slot:
    """One sequence within a model.

    Attributes:
        row: its row in the model's caches. It changes as other sequences leave.
        length: positions of the decoder's cache that it fills.
        prompt: the prompt that it began with; the forks of a sequence share it.
        source_length: positions of the encoder's output that it attends to.
        tokens: the tokens read after the prompt; their keys and values are in the cache.
        spoiled: whether the model has returned NaN for it, so that its caches may hold some.
    """

    row: int
    length: int = 0
    prompt: Prompt | None = None
    source_length: int = 1
    tokens: list[int] = field(default_factory=list)
    spoiled: bool = False

    @property
    def content(self) -> Sequence[int | bytes]:
        """What has been read of its prompt."""
        if self.prompt is None:
            return ()
        return self.prompt.content[: self.length - len(self.tokens)]

    def take_back(self, count: int) -> None:
        """Drops its last tokens. Their keys and values stay, unread, until they are overwritten."""
        del self.tokens[len(self.tokens) - count :]
        self.length -= count


class BatchModel(Protocol):
    """A language model that continues many sequences at once, each in a slot. Not thread-safe."""

    @property
    def capacity(self) -> int:
        """How many sequences it can hold."""
        ...

    @property
    def positions(self) -> int:
        """How many positions a sequence may have."""
        ...

    @property
    def start_token(self) -> int | None:
        """The token that an answer starts from; `None` if the prompt gives its first logits."""
        ...

    def acquire(self) -> Slot:
        """A slot that is not taken; there must be one."""
        ...

    def release(self, slot: Slot, *, keep: bool = False) -> None:
        """Frees a slot. Another slot may move into its row.

        Args:
            slot: a taken one.
            keep: whether a later prompt may begin with what has been read of this one's.
        """
        ...

    def read(self, visual_prompt: Array, prompt: PromptIds) -> Prompt:
        """Embeds a prompt and its visual prompt `[images, queries, hidden]`, of any float dtype."""
        ...

    def reuse(self, slot: Slot, prompt: Prompt) -> int:
        """Makes a slot begin with the positions that its prompt shares with one read before.

        Returns:
            How many of the prompt's positions need not be read.
        """
        ...

    @property
    def piece(self) -> int:
        """How many positions of prompts to read at once, between two steps."""
        ...

    @property
    def prompts_at_once(self) -> int:
        """How many prompts may be read at once."""
        ...

    def prefill(self, prompts: Mapping[Slot, Prompt], limit: int) -> dict[Slot, Array | None]:
        """Reads at most `limit` more positions of prompts into their slots, in one run.

        Reads of the first prompt, and of those that fit beside it (an encoder reads all of one).

        Returns:
            For each slot that was read into, the logits `[vocab]` of the answer's first token once
            all positions are read; always `None` if there is a `start_token`.
        """
        ...

    def step(self, tokens: Mapping[Slot, int]) -> Array:
        """Adds one token to each slot; returns the logits `[len(tokens), vocab]` of the next."""
        ...

    def fork(self, targets: Mapping[Slot, Slot]) -> None:
        """Makes each target equal to its source, copying only the positions where they differ.

        Args:
            targets: to the source of each; no slot is both.
        """
        ...

    def warm_up(self) -> None:
        """Runs every shape that will repeat once, in the thread that will run them."""
        ...

    def close(self) -> None:
        """Frees the graphs and the slots."""
        ...


def count_shared_positions(source: Slot, target: Slot) -> int:
    """The number of leading positions that two slots have in common."""
    if source.prompt is None or source.prompt is not target.prompt:
        return 0
    shared = source.length - len(source.tokens)  # of the prompt
    for mine, yours in zip(source.tokens, target.tokens, strict=False):
        if mine != yours:
            break
        shared += 1
    return shared
