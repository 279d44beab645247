"""Decoder-only language models (LLaMA, OPT) over slots that are allocated once.

The decoder's keys and values live in buffers `[slots, kv_heads, positions, head_dim]`, one row per
sequence. The live rows are always the first ones, so a step runs the decoder on the beginning of
the buffers, bound both as its past and as its present: new keys and values are written in place,
and nothing is copied. A prompt is read into its row in the same way, a piece at a time.

On a CPU, every run has the shape of what it reads. On a GPU, shapes repeat (`Shapes`), so that a
step of each number of rows is captured once as a CUDA graph, and replayed: what changes from step
to step lies in memory that stays in place.

Visual prompt and text begin the sequence. This module knows nothing of text, options or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from iblip.engines.language_model.onnx.graph import ON_CPU, Graph, Shapes
from iblip.engines.language_model.onnx.idle_slots import IdleSlots, count_equal
from iblip.engines.language_model.onnx.key_value_caches import (
    Caches,
    HostCaches,
    Shape,
)
from iblip.engines.language_model.onnx.slots import (
    Array,
    Prompt,
    Slot,
    count_shared_positions,
)
from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.engines.types import PromptIds
from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.manifest import SLOTS, LanguageModelFacts

MakeCaches = Callable[[Iterable[TensorSpec], Shape], Caches]
"""Makes caches of the decoder's cache inputs, each of the given shape."""

NO_EMBEDS: Array = np.empty((1, 0, 0), np.float32)

PAST, PRESENT, CROSS = "past_key_values.", "present_key_values.", "cross_key_values."


class Rows:
    """The decoder bound to consecutive rows of the caches, for `sequence` new positions in each.

    Args:
        model: the model that owns the caches.
        count: number of rows.
        sequence: number of new positions in each row.
        replayed: see `Graph.binding`; -1 for pieces of prompts, which alone have embeddings.

    Attributes:
        ids: int64 `[count, sequence]`: the token at each new position, or -1: inputs of the next
            run, as are the others but `logits`.
        embeds: `[count, sequence, hidden]`, in the contract's dtype, read where the id is -1; of
            pieces of prompts alone.
        positions: int64 `[count, sequence]`: the position in its row of each new one.
        logits_at: int64 `[count]`, of each row the new position whose logits are wanted, within
            `[count * sequence]`.
        total: int32 `[1]`: a bound of every row's length.
        logits: `[count, vocab]`, in the contract's dtype: output of the last run.
        binding: runs the decoder.
    """

    def __init__(self, model: DecoderOnly, count: int, sequence: int, replayed: int = -1) -> None:
        self._caches, self._contract = model.caches, model.decoder.contract
        self.count, self.sequence = count, sequence
        self.binding = model.decoder.binding(replayed)
        self.ids = self.stage("input_ids", count, sequence)
        self.positions = self.stage("position_ids", count, sequence)
        self.logits_at = self.stage("logits_at", count)
        self.logits_at[:] = sequence * np.arange(1, count + 1) - 1
        self.total = np.full(1, model.positions, np.int32)
        self.binding.input("total_sequence_length", self.total)
        self.embeds: Array | None = None
        if model.has_embeds:
            hidden = model.facts.hidden_size
            if replayed < 0:
                self.embeds = self.stage("inputs_embeds", count, sequence, hidden)
            else:
                self.binding.input("inputs_embeds", model.no_embeds(count))
        logits = self._contract.output("logits")
        self.logits, bound = self._caches.stage((count, model.facts.vocab_size), logits.numpy_dtype)
        self.binding.output("logits", bound)
        self._first = -1

    def stage(self, name: str, *shape: int) -> Array:
        """Binds an input to memory that stays in place, zero at first; returns the array."""
        array, bound = self._caches.stage(shape, self._contract.input(name).numpy_dtype)
        self.binding.input(name, bound)
        return array

    def run(self, first: int) -> None:
        """Runs the decoder on the rows from `first` on."""
        if first != self._first:
            for name in self._caches.names:
                rows = self._caches.rows(name, first, self.count)
                self.binding.input(name, rows)
                if name.startswith(PAST):
                    self.binding.output(PRESENT + name.removeprefix(PAST), rows)
            self._first = first
        self.binding.run()


class DecoderOnly:
    """LLaMA and OPT: a `BatchModel` of the graph `batched_decoder`.

    Args:
        graphs: by name.
        facts: of the model.
        slots: how many sequences it holds.
        positions: how many positions a sequence may have; `None` is the model's own length.
        make_caches: makes the caches.
        shapes: of its runs.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before.

    Attributes:
        decoder: the graph that every step runs.
        facts: of the model.
        caches: keys and values of every slot.
        has_embeds: whether the decoder reads embeddings too.
    """

    start_token: int | None = None

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        facts: LanguageModelFacts,
        *,
        slots: int = SLOTS,
        positions: int | None = None,
        make_caches: MakeCaches = HostCaches,
        shapes: Shapes = ON_CPU,
        prefix_cache: bool = True,
    ) -> None:
        self.capacity = slots
        self.positions = min(positions or facts.max_length, facts.most_positions)
        self.decoder, self.facts = graphs["batched_decoder"], facts
        self._shapes = replace(shapes, piece=min(shapes.piece, self.positions))
        shape = (slots, facts.num_key_value_heads, self.positions, facts.head_dim)
        inputs = {spec.name: spec for spec in self.decoder.contract.inputs}
        self.has_embeds = "inputs_embeds" in inputs
        self.caches = make_caches(
            [spec for name, spec in inputs.items() if name.startswith((PAST, CROSS))], shape
        )
        self._live: list[Slot] = []  # by row
        self._idle = IdleSlots()  # in rows after the live ones
        self._prefix_cache = prefix_cache
        self._steps: dict[int, Rows] = {}  # by number of rows
        self._pieces: dict[tuple[int, int], Rows] = {}  # by rows and positions, where these repeat
        self._no_embeds: dict[int, Array | DeviceArray] = {}

    @property
    def piece(self) -> int:
        """How many positions of prompts to read at once."""
        return self._shapes.piece

    @property
    def prompts_at_once(self) -> int:
        """How many prompts may be read at once."""
        return self._shapes.prompts_at_once

    def acquire(self) -> Slot:
        """The slot in the row after the live ones, with what is there; there must be one."""
        row = len(self._live)
        assert row < self.capacity
        self._live.append(self._idle.take(row) or Slot(row=row))
        return self._live[-1]

    def release(self, slot: Slot, *, keep: bool = False) -> None:
        """Frees a slot; the last live row moves into its row, so that the live rows have no gap.

        What is kept of a slot between others moves behind them, if there is room. Its answer is
        not kept: a step of one row adds up in another order than a prompt does.

        Attention on CUDA multiplies what it does not see by zero (`export.graph.decoder_fusion`),
        which leaves a NaN a NaN: none may stay for the next sequence.
        """
        last = self._live[-1]
        slot.take_back(len(slot.tokens))
        keep = keep and not slot.spoiled and bool(slot.content)
        if keep and last is not slot:
            self._copy_to_idle(slot)
        self._live.pop()
        if keep and last is slot:
            self._add_to_idle(slot)
        if slot.spoiled:
            self.caches.clear(slot.row)
        if last is not slot:
            self.caches.copy(PAST, [(last.row, slot.row, slice(0, last.length))])
            self._copy_sources([(last, slot.row)])
            if last.spoiled:
                self.caches.clear(last.row)
            last.row = slot.row
            self._live[slot.row] = last

    def fork(self, targets: Mapping[Slot, Slot]) -> None:
        """Makes each target equal to its source, copying only the positions where they differ."""
        assert not targets.keys() & set(targets.values())
        self.caches.copy(
            PAST,
            [
                (
                    source.row,
                    target.row,
                    slice(count_shared_positions(source, target), source.length),
                )
                for target, source in targets.items()
            ],
        )
        self._copy_sources(
            [
                (source, target.row)
                for target, source in targets.items()
                if target.prompt is not source.prompt
            ]
        )
        for target, source in targets.items():
            target.length, target.source_length = source.length, source.source_length
            target.prompt, target.tokens = source.prompt, source.tokens.copy()
            target.spoiled |= source.spoiled

    def reuse(self, slot: Slot, prompt: Prompt) -> int:
        """Makes a slot begin with the positions that its prompt shares with one read before.

        Returns:
            How many of the prompt's positions need not be read.
        """
        if not self._prefix_cache:
            return 0
        equal = {
            one: count_equal(one.content, prompt.content)
            for one in (slot, *self._live, *self._idle)  # the first of the longest is taken
            if not one.spoiled
        }
        source = max(equal, key=lambda one: equal[one])
        shared = self._count_reusable(equal[source], prompt.positions)
        if shared:
            self._idle.touch(source)
        if 2 * min(equal[slot], shared) < slot.length:  # most of what is in its row would go
            self._copy_to_idle(slot, needed=source)
        if shared and source is not slot:
            self.caches.copy(PAST, [(source.row, slot.row, slice(0, shared))])
        slot.prompt, slot.length = prompt, shared
        prompt.done = shared
        return shared

    def _count_reusable(self, equal: int, positions: int) -> int:
        """How many of a prompt's positions are worth taking, if so many are equal.

        An even number, and not the last two: kernels that multiply two rows at a time round the
        last of an odd number otherwise, and those for one row add up in another order.
        """
        shared = min(equal, positions - 2) // 2 * 2
        saves = self._shapes.padded(positions - shared) < self._shapes.padded(positions)
        return shared if saves else 0

    def _copy_to_idle(self, slot: Slot, needed: Slot | None = None) -> None:
        """Copies a live slot behind the live rows, if there is room without the needed one."""
        row = self._idle.find_room(range(len(self._live), self.capacity), needed)
        if row is not None:
            self.caches.copy(PAST, [(slot.row, row, slice(0, slot.length))])
            self._add_to_idle(replace(slot, row=row, tokens=[]))

    def _add_to_idle(self, slot: Slot) -> None:
        """Adds a slot behind the live ones. Its prompt's embeddings have been read: they go."""
        slot.prompt = Prompt(NO_EMBEDS, content=slot.content)
        self._idle.add(slot)

    def read(self, visual_prompt: Array, prompt: PromptIds) -> Prompt:
        """Puts each image's visual prompt `[queries, hidden]` at its place among the tokens."""
        text = np.array(prompt.ids, np.int64)  # [tokens]
        first, *others = prompt.pieces
        dtype = self.decoder.contract.input("inputs_embeds").numpy_dtype
        hidden = self.facts.hidden_size
        ids, embeds = [text[first]], [np.zeros((len(text[first]), hidden), dtype)]
        content: list[int | bytes] = [*prompt.ids[first]]
        for image, piece in zip(visual_prompt.astype(dtype), others, strict=True):
            ids += [np.full(len(image), -1), text[piece]]
            embeds += [image, np.zeros((len(text[piece]), hidden), dtype)]
            if self._prefix_cache:
                content += [sha256(image.tobytes()).digest()] * len(image)
                content += prompt.ids[piece]
        return Prompt(
            np.concatenate(embeds)[None],
            np.concatenate(ids)[None],
            content if self._prefix_cache else (),
        )

    def prefill(self, prompts: Mapping[Slot, Prompt], limit: int) -> dict[Slot, Array | None]:
        """Reads a piece of the first prompt, and whole prompts beside it where shapes repeat.

        Returns:
            For each slot that was read into, after the last piece, the next token's logits
            `[vocab]`.
        """
        group, sequence = self._group(prompts, limit)
        most = min(sequence, limit)
        counts = [min(prompt.positions - prompt.done, most) for _, prompt in group]
        rows = self._rows_of_piece(len(group), sequence)
        first = group[0][0]
        # Near the end of a slot there is no room for padding: what comes before is read again.
        back = max(0, first.length + sequence - self.positions)
        rows.total[0] = first.length - back + sequence
        rows.ids[:] = 0
        for row, ((slot, prompt), count) in enumerate(zip(group, counts, strict=True)):
            part = slice(prompt.done - back, prompt.done + count)
            assert prompt.ids is not None
            assert rows.embeds is not None
            rows.ids[row, : back + count] = prompt.ids[0, part]
            rows.embeds[row, : back + count] = prompt.embeds[0, part]
            rows.positions[row] = slot.length - back + np.arange(sequence)
            rows.logits_at[row] = row * sequence + back + count - 1
        rows.run(first.row)
        read: dict[Slot, Array | None] = {}
        for row, ((slot, prompt), count) in enumerate(zip(group, counts, strict=True)):
            slot.length += count
            slot.prompt = prompt
            prompt.done += count
            slot.spoiled |= bool(np.isnan(rows.logits[row, 0]))
            read[slot] = rows.logits[row].copy() if prompt.done == prompt.positions else None
        return read

    def _group(
        self, prompts: Mapping[Slot, Prompt], limit: int
    ) -> tuple[list[tuple[Slot, Prompt]], int]:
        """What the next run reads: prompts in consecutive rows, and how many positions of each."""
        (slot, prompt), *others = prompts.items()
        limit = min(limit, self.piece)
        left = prompt.positions - prompt.done
        count = min(left, limit)
        if not self._shapes.repeat:
            # Never one row alone at the end, nor an odd number before it: see `_count_reusable`.
            return [(slot, prompt)], count - 2 if left == count + 1 and count > 3 else count
        sequence, group = self._shapes.pad(count), [(slot, prompt)]
        for other, beside in others:
            padded = max(sequence, self._shapes.pad(min(beside.positions, limit)))
            adjacent = other.row == group[-1][0].row + 1
            fresh = not (slot.length or other.length)  # the operator reads several from 0 alone
            if not (adjacent and fresh and (len(group) + 1) * padded <= self.piece):
                break
            group.append((other, beside))
            sequence = padded
        del group[1 << (len(group).bit_length() - 1) :]  # a power of two, which repeats
        return group, sequence

    def _rows_of_piece(self, count: int, sequence: int) -> Rows:
        if not self._shapes.repeat:
            return Rows(self, count, sequence)
        if (count, sequence) not in self._pieces:
            self._pieces[count, sequence] = Rows(self, count, sequence)
        return self._pieces[count, sequence]

    def step(self, tokens: Mapping[Slot, int]) -> Array:
        """Adds one token to each slot; returns the logits `[len(tokens), vocab]` of the next."""
        count = 1 + max(slot.row for slot in tokens)
        rows = self.rows(count)
        rows.ids[:] = 0
        for slot in self._live[:count]:
            # A row that is not in `tokens`, because its prompt is still being read, is written at
            # its next position, which its prompt overwrites.
            rows.positions[slot.row] = slot.length
        for slot, token in tokens.items():
            rows.ids[slot.row] = token
        if not self._shapes.repeat:
            rows.total[0] = rows.positions.max() + 1
        self._set_more(rows)
        rows.run(0)
        for slot, token in tokens.items():
            slot.tokens.append(token)
            slot.length += 1
            slot.spoiled |= bool(np.isnan(rows.logits[slot.row, 0]))
        return rows.logits[[slot.row for slot in tokens]]  # [len(tokens), vocab]

    def rows(self, count: int) -> Rows:
        """The decoder bound to the first `count` rows for one new position in each, reused."""
        if count not in self._steps:
            self._steps[count] = Rows(self, count, 1, replayed=count)
            self._bind_more(self._steps[count])
        return self._steps[count]

    def no_embeds(self, count: int) -> Array | DeviceArray:
        """Zeros `[count, 1, hidden]` in the graphs' memory, for steps, which read tokens alone."""
        if count not in self._no_embeds:
            spec = self.decoder.contract.input("inputs_embeds")
            zeros = np.zeros((count, 1, self.facts.hidden_size), spec.numpy_dtype)
            self._no_embeds[count] = self.caches.keep(zeros)
        return self._no_embeds[count]

    def warm_up(self) -> None:
        """Runs every shape that repeats once, and so captures a step of each number of rows.

        All slots must be free.
        """
        if not self._shapes.repeat:
            return
        for count in range(self.capacity, 0, -1):  # the largest first: memory is taken once
            rows = self.rows(count)
            self._set_more(rows)
            rows.run(0)
        self._warm_up_prompts()

    def _warm_up_prompts(self) -> None:
        for sequence in sorted({self._shapes.pad(1 << bits) for bits in range(16)}, reverse=True):
            most = min(self.capacity, self.piece // sequence)
            for count in (1 << bits for bits in range(most.bit_length())):
                rows = self._rows_of_piece(count, sequence)
                rows.positions[:] = np.arange(sequence)
                rows.total[0] = sequence
                rows.run(0)

    def close(self) -> None:
        """Frees the graphs and the slots."""
        self._steps.clear()
        self._pieces.clear()
        self.caches.close()
        del self.decoder

    def _bind_more(self, rows: Rows) -> None:
        """Binds the further inputs of this kind of decoder."""

    def _set_more(self, rows: Rows) -> None:
        """Sets the further inputs of this kind of decoder."""

    def _copy_sources(self, copies: Sequence[tuple[Slot, int]]) -> None:
        """Copies slots' cross-attention keys and values, if they have any, to other rows."""
