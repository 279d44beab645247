"""What every language model's graphs share: token embeddings, cache tensors, their contracts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from iblip.export.artifact.contract import Axis, Contract, TensorSpec
from iblip.export.components.component import Component
from iblip.export.precision import DTYPES

IDS = ("batch", "sequence")


class TokenEmbeddings(torch.nn.Module):
    """The input embeddings alone, under the language model's own name for them.

    Args:
        path: of the embedding, below the checkpoint's root (`language_model.model.embed_tokens`).
        vocab_size, hidden_size: of the table.
    """

    def __init__(self, path: str, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        parent: torch.nn.Module = self
        *above, last = path.split(".")
        for name in above:
            parent.add_module(name, torch.nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, torch.nn.Embedding(vocab_size, hidden_size))
        self.path = path

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 `[batch, sequence]` to `[batch, sequence, hidden]`."""
        embeds: torch.Tensor = self.get_submodule(self.path)(input_ids)
        return embeds


def embed_tokens(text_config: Any, path: str, *, precision: str) -> Component:
    """Returns the graph from token ids to embeddings.

    Args:
        text_config: the checkpoint's.
        path: the table's name in the checkpoint, without `.weight`.
        precision: of the embeddings.
    """
    width = text_config.hidden_size
    return Component(
        component="language_model",
        graph="embed_tokens",
        precision=precision,
        contract=Contract(
            inputs=(TensorSpec(name="input_ids", dtype="int64", axes=IDS),),
            outputs=(inputs_embeds_spec(width, precision),),
        ),
        kind=TokenEmbeddings,
        settings=(path, text_config.vocab_size, width),
    )


def inputs_embeds_spec(hidden_size: int, precision: str) -> TensorSpec:
    """Returns the spec of embeddings, the output of `embed_tokens` and input of the others."""
    axes = (*IDS, hidden_size)
    return TensorSpec(name="inputs_embeds", dtype=DTYPES[precision], axes=axes)


def slot_specs(*, hidden: TensorSpec | None = None) -> tuple[TensorSpec, ...]:
    """Returns the inputs of every `batched_decoder` but the caches; see `export.components.slots`.

    Args:
        hidden: the spec of `inputs_embeds`, where it may take the place of token ids.
    """
    return (
        TensorSpec(name="input_ids", dtype="int64", axes=IDS),
        *([hidden] if hidden else []),
        TensorSpec(name="position_ids", dtype="int64", axes=IDS),
        TensorSpec(name="logits_at", dtype="int64", axes=("wanted",)),
        TensorSpec(name="total_sequence_length", dtype="int32", axes=(1,)),
    )


def slot_logits_spec(vocab_size: int) -> TensorSpec:
    """Returns the spec of the next-token scores at the positions `logits_at`, always float32."""
    return TensorSpec(name="logits", dtype="float32", axes=("wanted", vocab_size))


def logits_spec(vocab_size: int) -> TensorSpec:
    """Returns the spec of the next-token scores at every position, always float32."""
    return TensorSpec(name="logits", dtype="float32", axes=(*IDS, vocab_size))


def cache_specs(
    prefix: str, layers: int, heads: int, length: Axis, head_dim: int, precision: str
) -> tuple[TensorSpec, ...]:
    """Returns the specs of every layer's keys and values: `prefix.0.key, prefix.0.value, …`."""
    return tuple(
        TensorSpec(
            name=f"{prefix}.{layer}.{kind}",
            dtype=DTYPES[precision],
            axes=("batch", heads, length, head_dim),
        )
        for layer in range(layers)
        for kind in ("key", "value")
    )


def cache_from_tensors(tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """Returns a cache that holds `[key 0, value 0, …]`, each `[batch, heads, past, head_dim]`.

    The layers are filled by hand: `DynamicCache.update` would concatenate with an empty tensor
    first, and the trace would keep that.
    """
    cache = DynamicCache()
    for key, value in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.dtype, layer.device = key.dtype, key.device
        layer.keys, layer.values = key, value
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache


def tensors_from_cache(cache: Any) -> list[torch.Tensor]:
    """Returns a cache's `[key 0, value 0, …]`; the inverse of `cache_from_tensors`."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
