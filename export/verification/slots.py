"""Cases of `batched_decoder`, made of those of `decoder`: the same numbers, in slots.

A padded row of a `decoder` case becomes a slot that holds the row's real positions from its start.
Beyond them a slot has room, which the graph must not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.verification.case import Arrays, Case

Array = npt.NDArray[Any]
Lengths = npt.NDArray[np.int64]

SPARE = 3
"""Positions of room behind the longest row."""

JUNK = 7.0
"""What the room is filled with."""


def slot_cases(case: Case) -> Iterator[Case]:
    """The same step in slots: decoding all rows at once, a prompt row by row and in two chunks."""
    mask, sequence = case.feed["attention_mask"], case.feed["inputs_embeds"].shape[1]
    if sequence == 1:
        yield _case(case, range(len(mask)), mask.sum(axis=1) - 1)
        return
    for row, length in enumerate(mask.sum(axis=1)):
        yield _case(case, [row], np.array([0]))
        if row == 0:
            yield _case(case, [row], np.array([length // 2]))


def _case(case: Case, rows: Sequence[int], starts: Lengths) -> Case:
    """Rows of `case`, their tokens from `starts` on; those before are in their slots."""
    mask, embeds = case.feed["attention_mask"], case.feed["inputs_embeds"]
    ends = mask[rows].sum(axis=1)
    real = [np.flatnonzero(mask[row]) for row in rows]  # where each row's positions lie in `case`
    # The last columns of `attention_mask` are those of `inputs_embeds` and `logits`.
    before = mask.shape[1] - embeds.shape[1]
    new = [columns[start:] for columns, start in zip(real, starts, strict=True)]

    def tokens(array: Array) -> Array:
        return np.stack([array[row, at - before] for row, at in zip(rows, new, strict=True)])

    def slots(array: Array, lengths: Lengths) -> Array:
        _, heads, _, head_dim = array.shape
        shape = (len(rows), heads, int(ends.max()) + SPARE, head_dim)
        filled = np.full(shape, JUNK, np.float32)
        for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            filled[slot, :, :length] = array[row][:, real[slot][:length]]
        return filled

    present = {name: array for name, array in case.wanted.items() if name != "logits"}
    shown = np.arange(int(ends.max()) + SPARE) < ends[:, None]
    positions = starts[:, None] + np.arange(int((ends - starts)[0]))
    feed = {"inputs_embeds": tokens(embeds), "position_ids": positions}
    for name, array in present.items():
        feed[name.replace("present", "past")] = slots(array, starts)
    if "encoder_attention_mask" in case.feed:
        feed |= _cross(case, rows) | {"key_positions": np.arange(ends.max())}
    return Case(
        graph=case.graph.replace("decoder", "batched_decoder"),
        name=f"slots of {ends.tolist()}, {positions.shape[1]} new",
        feed=feed,
        wanted={
            "logits": tokens(case.wanted["logits"]),
            **{name: slots(array, ends) for name, array in present.items()},
        },
        real=dict.fromkeys(present, shown[:, None, :, None]),
    )


def _cross(case: Case, rows: Sequence[int]) -> Arrays:
    feed = {"source_lengths": case.feed["encoder_attention_mask"][rows].sum(axis=1)}
    for name, array in case.feed.items():
        if name.startswith("cross_key_values"):
            room = ((0, 0), (0, 0), (0, SPARE), (0, 0))
            feed[name] = np.pad(array[rows], room, constant_values=JUNK)
    return feed
