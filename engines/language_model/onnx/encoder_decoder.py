"""Encoder-decoder language models (T5) over slots.

Visual prompt and text are encoded, and the answer begins with a start token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iblip.engines.language_model.onnx.decoder_only import CROSS, DecoderOnly, MakeCaches, Rows
from iblip.engines.language_model.onnx.graph import ON_CPU, Graph, Shapes
from iblip.engines.language_model.onnx.key_value_caches import (
    HostCaches,
)
from iblip.engines.language_model.onnx.slots import (
    Array,
    Prompt,
    Slot,
)
from iblip.engines.onnxruntime.binding import DeviceArray
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import SLOTS, LanguageModelFacts
from iblip.export.errors import BuildDirectoryError


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
        shapes: Shapes = ON_CPU,
        prefix_cache: bool = True,
    ) -> None:
        super().__init__(
            graphs,
            facts,
            slots=slots,
            positions=positions,
            make_caches=make_caches,
            shapes=shapes,
            prefix_cache=False,  # an encoder's positions attend to those behind them, too
        )
        self._embed_tokens, self._encoder = graphs["embed_tokens"], graphs["encoder"]
        if facts.decoder_start_token_id is None:
            raise BuildDirectoryError(
                "the manifest names no decoder_start_token_id, which an encoder-decoder starts "
                "from. Build it again."
            )
        self.start_token = facts.decoder_start_token_id
        self._key_positions = np.arange(self.positions)
        self._all_key_positions: Array | DeviceArray | None = None
        self._sources: dict[int, tuple[Array, Array]] = {}  # by rows: lengths, and their bound

    @property
    def prompts_at_once(self) -> int:
        """One: an encoder reads a prompt as a whole."""
        return 1

    def read(self, visual_prompt: Array, prompt: PromptIds) -> Prompt:
        """Embeds the text, and puts each image's visual prompt `[queries, hidden]` at its place."""
        ids = np.array([prompt.ids], np.int64)
        text = self._embed_tokens({"input_ids": ids})["inputs_embeds"][0]  # [tokens, hidden]
        first, *others = prompt.pieces
        parts = [text[first]]
        for image, piece in zip(visual_prompt.astype(text.dtype), others, strict=True):
            parts += [image, text[piece]]
        return Prompt(np.concatenate(parts)[None])  # [1, positions, hidden]

    def prefill(self, prompts: Mapping[Slot, Prompt], limit: int) -> dict[Slot, Array | None]:
        """Encodes the whole first prompt at once, as all its positions attend to one another."""
        slot, prompt = next(iter(prompts.items()))
        binding = self._encoder.binding()
        binding.input("inputs_embeds", np.ascontiguousarray(prompt.embeds))
        binding.input("attention_mask", np.ones((1, prompt.positions), np.int64))
        # Each [1, heads, positions, head_dim], where the slots are: none comes to the host.
        for name, array in self.caches.lend(CROSS, prompt.positions).items():
            binding.output(name, array)
        binding.run()
        self.caches.take(CROSS, prompt.positions, slot.row)
        slot.prompt, slot.source_length = prompt, prompt.positions
        prompt.done = prompt.positions
        return {slot: None}

    def close(self) -> None:
        """Frees the graphs and the slots."""
        super().close()
        self._sources.clear()
        del self._encoder, self._embed_tokens

    def _warm_up_prompts(self) -> None:
        """Nothing: an encoder's shapes are its prompts'."""

    def _bind_more(self, rows: Rows) -> None:
        lengths = rows.stage("source_lengths", rows.count)
        total = np.full(1, self.positions, np.int32)
        rows.binding.input("total_source_length", total)
        self._sources[rows.count] = lengths, total
        if self._shapes.repeat:
            if self._all_key_positions is None:
                self._all_key_positions = self.caches.keep(self._key_positions)
            rows.binding.input("key_positions", self._all_key_positions)

    def _set_more(self, rows: Rows) -> None:
        lengths, total = self._sources[rows.count]
        lengths[:] = 1
        for slot in self._live[: rows.count]:
            lengths[slot.row] = slot.source_length
        if not self._shapes.repeat:
            total[0] = lengths.max()
            rows.binding.input("key_positions", self._key_positions[: rows.total[0]])  # [total]

    def _copy_sources(self, copies: Sequence[tuple[Slot, int]]) -> None:
        self.caches.copy(
            CROSS, [(slot.row, row, slice(0, slot.source_length)) for slot, row in copies]
        )
