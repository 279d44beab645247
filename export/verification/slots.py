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


def slot_cases(case: Case, ids: Array) -> Iterator[Case]:
    """Yields the same step in slots.

    Decoding: all rows, with `total_sequence_length` the longest row's length, then the capacity. A
    prefill: row by row, in pieces too; and all rows at once, padded, unless an encoder reads
    prompts: attention to its result takes several new positions in one row only.

    Args:
        case: of `decoder`.
        ids: int64 `[batch, sequence]`, the tokens of its positions; -1 where only `inputs_embeds`
            has them.
    """
    mask, sequence = case.feed["attention_mask"], case.feed["inputs_embeds"].shape[1]
    rows = range(len(mask))
    if sequence == 1:
        for spare in (0, SPARE):
            yield _case(case, ids, rows, mask.sum(axis=1) - 1, spare)
        return
    if "encoder_attention_mask" not in case.feed:
        yield _padded_case(case, ids)
    for row, length in enumerate(mask.sum(axis=1)):
        yield _case(case, ids, [row], np.array([0]))
        if row == 0:
            yield _case(case, ids, [row], np.array([length // 2]))


def _case(case: Case, ids: Array, rows: Sequence[int], starts: Lengths, spare: int = 0) -> Case:
    """Returns some rows of `case` from `starts` on; earlier positions are in their slots.

    Args:
        spare: by how much `total_sequence_length` exceeds the longest row.
    """
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
    total = int(ends.max()) + spare
    feed = _inputs(tokens(ids), tokens(embeds), positions, total)
    for name, array in present.items():
        feed[name.replace("present", "past")] = slots(array, starts)
    feed |= _cross(case, rows)
    bound = f", bounded by {total}" if spare else ""
    return Case(
        graph=case.graph.replace("decoder", "batched_decoder"),
        name=f"slots of {ends.tolist()}, {positions.shape[1]} new{bound}",
        feed=feed,
        expected={
            "logits": _flat(tokens(case.expected["logits"])),
            **{name: slots(array, ends) for name, array in present.items()},
        },
        real=dict.fromkeys(present, visible[:, None, :, None]),
    )


def _padded_case(case: Case, ids: Array) -> Case:
    """Returns a prefill of all rows at once; shorter ones are padded behind their ends."""
    mask, embeds = case.feed["attention_mask"], case.feed["inputs_embeds"]
    batch, sequence = mask.shape
    room = ((0, 0), (0, 0), (0, SPARE), (0, 0))
    present = {
        name: np.pad(array, room, constant_values=JUNK)
        for name, array in case.expected.items()
        if name != "logits"
    }
    visible = np.pad(mask, ((0, 0), (0, SPARE))) != 0
    feed = _inputs(ids, embeds, np.tile(np.arange(sequence), (batch, 1)), sequence)
    for name, array in present.items():
        feed[name.replace("present", "past")] = np.full_like(array, JUNK)
    return Case(
        graph=case.graph.replace("decoder", "batched_decoder"),
        name=f"slots of {mask.sum(axis=1).tolist()}, padded to {sequence} new",
        feed=feed | _cross(case, range(batch)),
        expected={"logits": _flat(case.expected["logits"]), **present},
        real={
            "logits": mask.reshape(-1, 1) != 0,
            **dict.fromkeys(present, visible[:, None, :, None]),
        },
    )


def _inputs(ids: Array, embeds: Array, positions: Array, total: int) -> Arrays:
    """Returns the feed but for the slots. Embeddings of tokens that have an id are junk."""
    return {
        "input_ids": ids,
        "inputs_embeds": np.where(ids[..., None] < 0, embeds, np.float32(JUNK)),
        "position_ids": positions,
        "logits_at": np.arange(ids.size),
        "total_sequence_length": np.array([total]),
        "key_positions": np.arange(total),
    }


def _flat(array: Array) -> Array:
    # [batch, sequence, vocab] to [batch * sequence, vocab]
    return array.reshape(-1, array.shape[-1])


def _cross(case: Case, rows: Sequence[int]) -> Arrays:
    """Returns what an encoder gave to `rows`; nothing where there is none."""
    if "encoder_attention_mask" not in case.feed:
        return {}
    lengths = case.feed["encoder_attention_mask"][rows].sum(axis=1)
    feed = {"source_lengths": lengths, "total_source_length": lengths.max(keepdims=True)}
    for name, array in case.feed.items():
        if name.startswith("cross_key_values"):
            padding = ((0, 0), (0, 0), (0, SPARE), (0, 0))
            feed[name] = np.pad(array[rows], padding, constant_values=JUNK)
    return feed
