"""A language model's graphs on ONNX Runtime, over slots that are allocated once.

The decoder's keys and values live in buffers `[slots, kv_heads, positions, head_dim]`, one row per
sequence. The live rows are always the first ones, so a step runs the decoder on the beginning of
the buffers, bound both as its past and as its present: new keys and values are written in place,
and nothing is copied. A prompt is read into its row in the same way, a piece at a time.

There are two kinds of model: decoder-only (LLaMA, OPT), where visual prompt and text begin the
sequence, and encoder-decoder (T5), where they are encoded and the answer begins with a start token.
This module knows nothing of text, options or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from iblip.engines.language_model.onnx.key_value_caches import (
    Caches,
    DeviceCaches,
    HostCaches,
    Shape,
)
from iblip.engines.language_model.onnx.slots import (
    Array,
    BatchModel,
    Prompt,
    Slot,
    count_shared_positions,
)
from iblip.engines.onnxruntime.binding import Binding
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.onnxruntime.session import open_session
from iblip.engines.types import PromptIds
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import SLOTS, LanguageModelFacts, Manifest
from iblip.export.errors import BuildDirectoryError, EngineError
from iblip.export.graph.onnxruntime_values import run

MakeCaches = Callable[[Iterable[TensorSpec], Shape], Caches]
"""Makes caches of the decoder's cache inputs, each of the given shape."""

PAST, PRESENT, CROSS = "past_key_values.", "present_key_values.", "cross_key_values."


class Graph:
    """One ONNX graph on ONNX Runtime.

    Args:
        path: of the `.onnx` file.
        contract: its inputs and outputs.
        threads: for one operator; `None` takes one per core.
        spin: whether idle threads wait busily for the next call.
        placement: the execution provider, its device and its options.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        *,
        threads: int | None = None,
        spin: bool = False,
        placement: Placement = CPU,
    ) -> None:
        self._path = path
        self._session = open_session(
            path, contract, threads=threads, spin=spin, placement=placement
        )
        self._memory = placement.memory
        self._outputs = [spec.name for spec in contract.outputs]
        self.contract = contract

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph; returns every output by name. Raises `EngineError` if that fails."""
        try:
            return run(self._session, self._outputs, arrays)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed in {self._path} ({error})") from error

    def binding(self) -> Binding:
        """A new binding, which runs the graph on memory that stays in place."""
        return Binding(self._session, str(self._path), memory=self._memory)


class Rows:
    """The decoder bound to consecutive rows of the caches, for `sequence` new positions in each.

    Args:
        model: the model that owns the caches.
        first: index of the first row.
        count: number of rows.
        sequence: number of new positions in each row.

    Attributes:
        embeds: `[count, sequence, hidden]`, in the contract's dtype: input of the next run.
        positions: int64 `[count, sequence]`: the position in its row of each new one.
        logits: `[count, sequence, vocab]`, in the contract's dtype: output of the last run.
        binding: runs the decoder.
    """

    def __init__(self, model: DecoderOnly, first: int, count: int, sequence: int) -> None:
        contract = model.decoder.contract
        embeds, logits = contract.input("inputs_embeds"), contract.output("logits")
        self.embeds = np.zeros((count, sequence, model.facts.hidden_size), embeds.numpy_dtype)
        self.positions = np.zeros((count, sequence), np.int64)
        self.logits = np.zeros((count, sequence, model.facts.vocab_size), logits.numpy_dtype)
        self.binding = model.decoder.binding()
        self.binding.input("inputs_embeds", self.embeds)
        self.binding.input("position_ids", self.positions)
        self.binding.output("logits", self.logits)
        for name in model.caches.names:
            rows = model.caches.rows(name, first, count)  # [count, kv_heads, positions, head_dim]
            self.binding.input(name, rows)
            if name.startswith(PAST):
                self.binding.output(PRESENT + name.removeprefix(PAST), rows)


class DecoderOnly:
    """LLaMA and OPT: a `BatchModel` of the graphs `embed_tokens` and `batched_decoder`.

    Args:
        graphs: by name.
        facts: of the model.
        slots: how many sequences it holds.
        positions: how many positions a sequence may have; `None` is the model's own length.
        make_caches: makes the caches.

    Attributes:
        decoder: the graph that every step runs.
        facts: of the model.
        caches: keys and values of every slot.
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
    ) -> None:
        self.capacity, self.positions = slots, min(positions or facts.max_length, facts.max_length)
        self._embed_tokens, self.decoder = graphs["embed_tokens"], graphs["batched_decoder"]
        self.facts = facts
        shape = (slots, facts.num_key_value_heads, self.positions, facts.head_dim)
        inputs = self.decoder.contract.inputs
        self.caches = make_caches(
            [spec for spec in inputs if spec.name.startswith((PAST, CROSS))], shape
        )
        self._live: list[Slot] = []  # by row
        self._batches: dict[int, Rows] = {}  # number of rows to the binding of the first rows

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return len(self._live)

    def acquire(self) -> Slot:
        """An empty slot, in the row after the live ones; there must be one."""
        assert len(self._live) < self.capacity
        self._live.append(Slot(row=len(self._live)))
        return self._live[-1]

    def release(self, slot: Slot) -> None:
        """Frees a slot; the last live row moves into its row, so that the live rows have no gap."""
        last = self._live.pop()
        if last is not slot:
            self._copy(last, slot.row, 0)
            self._copy_source(last, slot.row)
            last.row = slot.row
            self._live[slot.row] = last

    def fork(self, source: Slot, target: Slot) -> None:
        """Makes `target` equal to `source`, copying only the positions where they differ."""
        self._copy(source, target.row, count_shared_positions(source, target))
        if target.prompt is not source.prompt:
            self._copy_source(source, target.row)
        target.length, target.source_length = source.length, source.source_length
        target.prompt, target.tokens = source.prompt, source.tokens.copy()

    def read(self, visual_prompt: Array, prompt: PromptIds) -> Prompt:
        """Embeds the text, and puts each image's visual prompt `[queries, hidden]` at its place."""
        text = self._embed(np.array([prompt.ids], np.int64))[0]  # [tokens, hidden]
        first, *others = prompt.pieces
        parts = [text[first]]
        for image, piece in zip(visual_prompt.astype(text.dtype), others, strict=True):
            parts += [image, text[piece]]
        return Prompt(np.concatenate(parts)[None])  # [1, positions, hidden]

    def prefill(self, slot: Slot, prompt: Prompt, limit: int) -> Array | None:
        """Reads a piece of the prompt; after the last one, the next token's logits `[vocab]`."""
        embeds = prompt.embeds[:, prompt.done : prompt.done + limit]  # [1, count, hidden]
        count = embeds.shape[1]
        rows = Rows(self, slot.row, 1, count)
        rows.embeds[:] = embeds
        rows.positions[:] = np.arange(slot.length, slot.length + count)
        rows.binding.run()
        slot.length += count
        slot.prompt = prompt
        prompt.done += count
        return rows.logits[0, -1] if prompt.done == prompt.positions else None

    def step(self, tokens: Mapping[Slot, int]) -> Array:
        """Adds one token to each slot; returns the logits `[len(tokens), vocab]` of the next."""
        count = 1 + max(slot.row for slot in tokens)
        rows = self.rows(count)
        ids = np.zeros((count, 1), np.int64)  # [count, 1]
        for slot in self._live[:count]:
            # A row that is not in `tokens`, because its prompt is still being read, is written at
            # its next position, which its prompt overwrites.
            rows.positions[slot.row] = slot.length
        for slot, token in tokens.items():
            ids[slot.row] = token
        rows.embeds[:] = self._embed(ids)  # [count, 1, hidden]
        self._bind_more(rows, count)
        rows.binding.run()
        for slot, token in tokens.items():
            slot.tokens.append(token)
            slot.length += 1
        return rows.logits[[slot.row for slot in tokens], 0]  # [len(tokens), vocab]

    def rows(self, count: int) -> Rows:
        """The decoder bound to the first `count` rows for one new position in each, reused."""
        if count not in self._batches:
            self._batches[count] = Rows(self, 0, count, 1)
        return self._batches[count]

    def close(self) -> None:
        """Frees the graphs and the slots."""
        self._batches.clear()
        self.caches.close()
        del self._embed_tokens, self.decoder

    def _bind_more(self, rows: Rows, count: int) -> None:
        """Binds the further inputs of this kind of decoder."""

    def _embed(self, ids: Array) -> Array:
        """Embeddings `[rows, tokens, hidden]` of ids, int64 `[rows, tokens]`."""
        return self._embed_tokens({"input_ids": ids})["inputs_embeds"]

    def _copy(self, source: Slot, row: int, start: int) -> None:
        """Copies a slot's keys and values from position `start` on to another row."""
        names = [name for name in self.caches.names if name.startswith(PAST)]
        self.caches.copy(names, source.row, row, slice(start, source.length))

    def _copy_source(self, source: Slot, row: int) -> None:
        """Copies a slot's cross-attention keys and values, if it has any, to another row."""


class EncoderDecoder(DecoderOnly):
    """T5: a `BatchModel` of `embed_tokens`, `encoder` and `batched_decoder`."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        facts: LanguageModelFacts,
        *,
        slots: int = SLOTS,
        positions: int | None = None,
        make_caches: MakeCaches = HostCaches,
    ) -> None:
        super().__init__(graphs, facts, slots=slots, positions=positions, make_caches=make_caches)
        self._encoder = graphs["encoder"]
        if facts.decoder_start_token_id is None:
            raise BuildDirectoryError(
                "the manifest names no decoder_start_token_id, which an encoder-decoder starts "
                "from. Build it again."
            )
        self.start_token = facts.decoder_start_token_id
        self._key_positions = np.arange(self.positions)

    def prefill(self, slot: Slot, prompt: Prompt, limit: int) -> None:
        """Encodes the whole prompt at once, because all its positions attend to one another."""
        mask = np.ones((1, prompt.positions), np.int64)
        # cross: each [1, heads, positions, head_dim]
        cross = self._encoder({"inputs_embeds": prompt.embeds, "attention_mask": mask})
        self.caches.write({name: array[0] for name, array in cross.items()}, slot.row)
        slot.prompt, slot.source_length = prompt, prompt.positions
        prompt.done = prompt.positions

    def close(self) -> None:
        """Frees the graphs and the slots."""
        super().close()
        del self._encoder

    def _bind_more(self, rows: Rows, count: int) -> None:
        source_lengths = np.ones(count, np.int64)  # [count]
        for slot in self._live[:count]:
            source_lengths[slot.row] = slot.source_length
        rows.binding.input("source_lengths", source_lengths)
        longest = int(rows.positions.max()) + 1
        rows.binding.input("key_positions", self._key_positions[:longest])  # [longest]

    def _copy_source(self, source: Slot, row: int) -> None:
        names = [name for name in self.caches.names if name.startswith(CROSS)]
        self.caches.copy(names, source.row, row, slice(0, source.source_length))


MODELS: Mapping[bool, Callable[..., BatchModel]] = {False: DecoderOnly, True: EncoderDecoder}
"""`is_encoder_decoder` to the kind of model."""


def open_model(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
    slots: int = SLOTS,
    positions: int | None = None,
) -> BatchModel:
    """The language model of a build, with its graphs loaded.

    Args:
        directory: of the build.
        manifest: of the same build.
        threads: for one operator, on a CPU; `None` takes one per core this process may use.
        device: the GPU's number, from 0, if the engine runs on one; its slots lie there too.
        slots: how many sequences it holds.
        positions: how many positions a sequence may have; `None` is the model's own length.

    Raises:
        BuildDirectoryError: the build lacks one of its graphs.
        EngineError: a graph cannot be loaded.
    """
    record = manifest.components.get("language_model")
    placement = CPU if record is None else Placement(kind=record.engine.kind, device=device)
    facts = manifest.language_model
    graphs = open_graphs(directory, manifest, placement, threads=threads)
    return MODELS[facts.is_encoder_decoder](
        graphs,
        facts,
        slots=slots,
        positions=positions,
        make_caches=HostCaches if placement.memory == "cpu" else _make_on_gpu(placement),
    )


def open_graphs(
    directory: Path, manifest: Manifest, placement: Placement, *, threads: int | None = None
) -> dict[str, Graph]:
    """The graphs of a build's language model, by name.

    Args:
        directory: of the build.
        manifest: of the same build.
        placement: the execution provider, its device and its options.
        threads: for one operator, on a CPU; `None` takes one per core this process may use.

    Raises:
        BuildDirectoryError: the build lacks one of them.
        EngineError: a graph cannot be loaded.
    """
    record = manifest.components.get("language_model")
    encoder = ["encoder"] if manifest.language_model.is_encoder_decoder else []
    names = ["embed_tokens", "batched_decoder", *encoder]
    missing = [name for name in names if record is None or name not in record.graphs]
    if record is None or missing:
        message = f"the build in {directory} has no language_model graph {', '.join(missing)}"
        raise BuildDirectoryError(f"{message}. Build it again.")
    return {
        name: Graph(
            directory / record.engine.files[name],
            record.graphs[name].contract,
            # It looks up a few rows: a second thread would only wait.
            threads=1 if name == "embed_tokens" else threads,
            # Its steps follow one another at once; the others run once an answer or on one thread.
            spin=name == "batched_decoder",
            placement=placement,
        )
        for name in names
    }


def _make_on_gpu(placement: Placement) -> MakeCaches:
    from iblip.engines.cuda.device import CudaDevice

    def make(specs: Iterable[TensorSpec], shape: Shape) -> Caches:
        return DeviceCaches(specs, shape, CudaDevice(placement.device), placement.device)

    return make
