"""Cases of `batched_decoder`, derived from those of `decoder`: the same numbers, in slots.

A padded row of a `decoder` case becomes a slot that begins with the row's real positions. The rest
of the slot is spare, and the graph must not read it.
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
"""Spare positions behind the longest row."""

JUNK = 7.0
"""Value of the spare positions."""


def slot_cases(case: Case) -> Iterator[Case]:
    """Yields the same step in slots: decoding for all rows, a prefill row by row, in chunks too."""
    mask, sequence = case.feed["attention_mask"], case.feed["inputs_embeds"].shape[1]
    if sequence == 1:
        yield _case(case, range(len(mask)), mask.sum(axis=1) - 1)
        return
    for row, length in enumerate(mask.sum(axis=1)):
        yield _case(case, [row], np.array([0]))
        if row == 0:
            yield _case(case, [row], np.array([length // 2]))


def _case(case: Case, rows: Sequence[int], starts: Lengths) -> Case:
    """Returns some rows of `case` from `starts` on; earlier positions are in their slots."""
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

    present = {name: array for name, array in case.expected.items() if name != "logits"}
    visible = np.arange(int(ends.max()) + SPARE) < ends[:, None]
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
        expected={
            "logits": tokens(case.expected["logits"]),
            **{name: slots(array, ends) for name, array in present.items()},
        },
        real=dict.fromkeys(present, visible[:, None, :, None]),
    )


def _cross(case: Case, rows: Sequence[int]) -> Arrays:
    feed = {"source_lengths": case.feed["encoder_attention_mask"][rows].sum(axis=1)}
    for name, array in case.feed.items():
        if name.startswith("cross_key_values"):
            padding = ((0, 0), (0, 0), (0, SPARE), (0, 0))
            feed[name] = np.pad(array[rows], padding, constant_values=JUNK)
    return feed
