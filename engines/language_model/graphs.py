"""A language model's graphs on ONNX Runtime: prefill and step, with a key-value cache.

Two shapes of model stand behind `SequenceModel`: decoder-only (LLaMA, OPT), where the visual
prompt and the text are the beginning of the sequence, and encoder-decoder (T5), where they are
encoded and the answer starts from a token of its own. The cache never passes through numpy: what
one step returns is bound to the next as it is. Knows nothing of text, options or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.onnxruntime.session import array_from_value, open_session, value_from_array
from export.contract import Contract
from export.errors import BuildDirectoryError, EngineError
from export.manifest import LanguageModelFacts, Manifest

Array = npt.NDArray[Any]
Values = dict[str, Any]
"""`OrtValue`s by tensor name."""

PAST, PRESENT, CROSS = "past_key_values.", "present_key_values.", "cross_key_values."


@dataclass
class Cache:
    """One sequence within a model.

    Attributes:
        length: positions that the decoder has seen.
        keys_values: the decoder's own cache, under the names of its `past_key_values` inputs,
            each `[1, kv_heads, length, head_dim]`.
        fixed: further decoder inputs that stay the same for the whole sequence.
    """

    length: int
    keys_values: Values
    fixed: Values


class SequenceModel(Protocol):
    """A language model that continues sequences, one at a time."""

    def prefill(self, visual_prompt: Array, prompt_ids: Sequence[int]) -> tuple[Cache, Array]:
        """Reads a visual prompt `[queries, hidden]`, of any float dtype, and the prompt's ids.

        Returns the new sequence, and the logits `[vocab]` of the answer's first token.
        """
        ...

    def step(self, cache: Cache, token_id: int) -> Array:
        """Adds one token to the sequence; the logits `[vocab]` of the next."""
        ...

    def close(self) -> None:
        """Frees the graphs."""
        ...


class Graph:
    """One ONNX graph that takes and returns `OrtValue`s.

    Args:
        path: of the `.onnx` file.
        contract: its inputs and outputs.
        threads: for one operator; `None` takes one per core.
        spin: whether idle threads wait busily for the next call.
    """

    def __init__(
        self, path: Path, contract: Contract, *, threads: int | None = None, spin: bool = False
    ) -> None:
        self._path = path
        self._session = open_session(path, contract, threads=threads, spin=spin)
        self._outputs = [spec.name for spec in contract.outputs]
        self.contract = contract

    def __call__(self, values: Values) -> Values:
        """Every output by name. Raises `EngineError` where ONNX Runtime fails."""
        try:
            found = self._session.run_with_ort_values(self._outputs, values)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed in {self._path} ({error})") from error
        return dict(zip(self._outputs, found, strict=True))


class _Base:
    """What both shapes share: embedding ids, and running the decoder over a cache."""

    def __init__(self, graphs: Mapping[str, Graph], facts: LanguageModelFacts) -> None:
        self._embed_tokens = graphs["embed_tokens"]
        self._decoder = graphs["decoder"]
        self._graphs = graphs
        specs = self._decoder.contract.inputs
        self._dtype = self._decoder.contract.input("inputs_embeds").numpy_dtype
        self._past = [spec for spec in specs if spec.name.startswith(PAST)]
        self._takes_positions = any(spec.name == "position_ids" for spec in specs)
        self._facts = facts
        # Sliced for every step, so that no step allocates them.
        self._ones = np.ones((1, 0), np.int64)

    def close(self) -> None:
        """Frees the graphs."""
        self._graphs = {}
        del self._embed_tokens, self._decoder

    def _embed(self, ids: Sequence[int]) -> Any:
        values = {"input_ids": value_from_array(np.array([ids], dtype=np.int64))}
        return self._embed_tokens(values)["inputs_embeds"]

    def _embed_with(self, visual_prompt: Array, ids: Sequence[int]) -> Array:
        # [1, queries + len(ids), hidden]
        text = array_from_value(self._embed(ids))
        return np.concatenate([visual_prompt[None].astype(self._dtype), text], axis=1)

    def _ones_mask(self, length: int) -> Any:
        if self._ones.shape[1] < length:
            self._ones = np.ones((1, 2 * length), np.int64)
        return value_from_array(self._ones[:, :length])

    def _empty_cache(self, fixed: Values) -> Cache:
        facts = self._facts
        shape = (1, facts.num_key_value_heads, 0, facts.head_dim)
        past = {
            spec.name: value_from_array(np.empty(shape, spec.numpy_dtype)) for spec in self._past
        }
        return Cache(length=0, keys_values=past, fixed=fixed)

    def _advance(self, cache: Cache, inputs_embeds: Any, count: int) -> Array:
        """Runs the decoder over `count` more positions; the logits `[vocab]` after the last."""
        total = cache.length + count
        values = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": self._ones_mask(total),
            **cache.keys_values,
            **cache.fixed,
        }
        if self._takes_positions:
            positions = np.arange(cache.length, total, dtype=np.int64)[None]
            values["position_ids"] = value_from_array(positions)
        outputs = self._decoder(values)
        cache.length = total
        cache.keys_values = {
            name: outputs[PRESENT + name.removeprefix(PAST)] for name in cache.keys_values
        }
        logits: Array = array_from_value(outputs["logits"])[0, -1]  # of [1, count, vocab]
        return logits

    def step(self, cache: Cache, token_id: int) -> Array:
        """Adds one token to the sequence; the logits `[vocab]` of the next."""
        return self._advance(cache, self._embed([token_id]), 1)


class DecoderOnly(_Base):
    """LLaMA and OPT: graphs `embed_tokens` and `decoder`."""

    def prefill(self, visual_prompt: Array, prompt_ids: Sequence[int]) -> tuple[Cache, Array]:
        """The visual prompt first and then the ids, BOS among them, as in transformers."""
        embeds = self._embed_with(visual_prompt, prompt_ids)
        cache = self._empty_cache({})
        return cache, self._advance(cache, value_from_array(embeds), embeds.shape[1])


class EncoderDecoder(_Base):
    """T5: graphs `embed_tokens`, `encoder` and `decoder`."""

    def __init__(self, graphs: Mapping[str, Graph], facts: LanguageModelFacts) -> None:
        super().__init__(graphs, facts)
        self._encoder = graphs["encoder"]
        if facts.decoder_start_token_id is None:
            raise BuildDirectoryError(
                "the manifest names no decoder_start_token_id, which an encoder-decoder starts "
                "from. Build it again."
            )
        self._start = facts.decoder_start_token_id

    def prefill(self, visual_prompt: Array, prompt_ids: Sequence[int]) -> tuple[Cache, Array]:
        """Encodes the visual prompt and the ids, then runs the decoder's start token."""
        embeds = self._embed_with(visual_prompt, prompt_ids)
        mask = value_from_array(np.ones((1, embeds.shape[1]), np.int64))
        cross = self._encoder({"inputs_embeds": value_from_array(embeds), "attention_mask": mask})
        cache = self._empty_cache({**cross, "encoder_attention_mask": mask})
        return cache, self.step(cache, self._start)

    def close(self) -> None:
        """Frees the graphs."""
        super().close()
        del self._encoder


MODELS: Mapping[bool, Callable[[Mapping[str, Graph], LanguageModelFacts], SequenceModel]] = {
    False: DecoderOnly,
    True: EncoderDecoder,
}
"""`is_encoder_decoder` to the shape of model."""


def open_model(directory: Path, manifest: Manifest, *, threads: int | None = None) -> SequenceModel:
    """The language model of a build, with its graphs loaded.

    Raises:
        BuildDirectoryError: the build has not all of its graphs.
        EngineError: a graph cannot be loaded.
    """
    record = manifest.components.get("language_model")
    facts = manifest.language_model
    wanted = ["embed_tokens", "decoder", *(["encoder"] if facts.is_encoder_decoder else [])]
    missing = [name for name in wanted if record is None or name not in record.graphs]
    if record is None or missing:
        message = f"the build in {directory} has no language_model graph {', '.join(missing)}"
        raise BuildDirectoryError(f"{message}. Build it again.")
    graphs = {
        name: Graph(
            directory / record.engine.files[name],
            record.graphs[name].contract,
            # One row is looked up: a second thread would only wait.
            threads=1 if name == "embed_tokens" else threads,
            # Its steps follow one another at once; the others run once an answer, or on one thread.
            spin=name == "decoder",
        )
        for name in wanted
    }
    return MODELS[facts.is_encoder_decoder](graphs, facts)
