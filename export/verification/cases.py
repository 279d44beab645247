"""Inputs for every graph, and what transformers' own modules compute from them in float32.

Each graph is fed the reference's own intermediate tensors, so that an error shows where it arises.
Rows are ragged: shorter ones are padded on the right, and only real positions are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import DynamicCache, EncoderDecoderCache

from iblip.export.checkpoint.cache_shape import CacheShape
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.components.language_model import tensors_from_cache
from iblip.export.verification.case import Arrays, Case
from iblip.export.verification.reference import Reference
from iblip.export.verification.slots import slot_cases

BATCHES = (1, 2, 5)
"""Batch sizes that every graph is run with."""

DECODE_STEPS = 2
"""Steps after the prefill: each takes the present of the one before as its past."""


@torch.no_grad()
def cases(checkpoint: Checkpoint, reference: Reference, *, seed: int = 0) -> Iterator[Case]:
    """Yields every case of every graph, in the order of the graphs.

    Args:
        checkpoint: what was exported.
        reference: transformers' model of it.
        seed: of the random pixels and token ids.
    """
    random = np.random.default_rng(seed)
    is_encoder_decoder = checkpoint.config.text_config.is_encoder_decoder
    language = _encoder_decoder if is_encoder_decoder else _decoder_only
    for batch in BATCHES:
        pixels, values = _pixels(checkpoint, random, batch)
        text, name = _instructions(checkpoint, random, batch), f"batch {batch}"
        features, visual_prompt = reference.features(values, **text)
        image_embeds = _array(features)
        yield Case(
            graph="vision_encoder/model",
            name=name,
            feed={"pixels": pixels},
            expected={"image_embeds": image_embeds},
            real={},
        )
        if text:
            lengths = sorted(_array(text["qformer_attention_mask"].sum(1)).tolist())
            name += f", instructions of {lengths} tokens"
        yield Case(
            graph="qformer/model",
            name=name,
            feed={"image_embeds": image_embeds, **{key: _array(text[key]) for key in text}},
            expected={"visual_prompt": _array(visual_prompt)},
            real={},
        )
        yield from language(checkpoint, reference.language_model, random, visual_prompt)


def _pixels(
    checkpoint: Checkpoint, random: np.random.Generator, batch: int
) -> tuple[npt.NDArray[Any], torch.Tensor]:
    size = checkpoint.config.vision_config.image_size
    pixels = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    processor = checkpoint.processor
    values = processor.image_processor([Image.fromarray(p) for p in pixels], return_tensors="pt")
    return pixels, values["pixel_values"]


def _instructions(
    checkpoint: Checkpoint, random: np.random.Generator, batch: int
) -> dict[str, torch.Tensor]:
    """Returns random instructions; empty if the Q-Former reads none."""
    if checkpoint.projector != "instruction_qformer":
        return {}
    lengths = _lengths(random, batch, longest=12)
    mask = _mask(lengths)
    vocab = checkpoint.config.qformer_config.vocab_size
    ids = random.integers(1, vocab, (batch, int(lengths.max()))) * mask
    return {
        "qformer_input_ids": torch.from_numpy(ids),
        "qformer_attention_mask": torch.from_numpy(mask),
    }


def _lengths(random: np.random.Generator, batch: int, *, longest: int) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = random.integers(2, longest + 1, batch)
    return lengths


def _mask(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)


def _decoder_only(
    checkpoint: Checkpoint, model: Any, random: np.random.Generator, visual_prompt: torch.Tensor
) -> Iterator[Case]:
    batch, queries, _ = visual_prompt.shape
    mask = _mask(_lengths(random, batch, longest=9) + queries)
    ids = _ids(checkpoint, random, batch, mask.shape[1] - queries)
    yield _embed_case(model, ids)
    embeds = torch.cat([visual_prompt, model.get_input_embeddings()(ids)], dim=1)
    tokens = np.concatenate([np.full((batch, queries), -1), _array(ids)], axis=1)
    positions = np.cumsum(mask, axis=1) - 1
    cache = DynamicCache()
    for step in range(1 + DECODE_STEPS):
        past = _past(cache, model, batch)
        position_ids = torch.from_numpy(positions[:, -embeds.shape[1] :].copy())
        logits = model(
            inputs_embeds=embeds,
            attention_mask=torch.from_numpy(mask),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        case = _decoder_case(step, embeds, mask, past, logits, cache, position_ids=position_ids)
        yield case
        yield from slot_cases(case, tokens)
        ids = _ids(checkpoint, random, batch, 1)
        tokens, embeds = _array(ids), model.get_input_embeddings()(ids)
        mask = np.concatenate([mask, np.ones((batch, 1), np.int64)], axis=1)
        positions = np.cumsum(mask, axis=1) - 1


def _encoder_decoder(
    checkpoint: Checkpoint, model: Any, random: np.random.Generator, visual_prompt: torch.Tensor
) -> Iterator[Case]:
    batch, queries, _ = visual_prompt.shape
    source_mask = _mask(_lengths(random, batch, longest=9) + queries)
    ids = _ids(checkpoint, random, batch, source_mask.shape[1] - queries)
    yield _embed_case(model, ids)
    embeds = torch.cat([visual_prompt, model.get_input_embeddings()(ids)], dim=1)
    encoded = model.encoder(inputs_embeds=embeds, attention_mask=torch.from_numpy(source_mask))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    answer = _ids(checkpoint, random, batch, 3)
    mask = np.ones((batch, 3), np.int64)
    for step in range(1 + DECODE_STEPS):
        past = _past(cache.self_attention_cache, model, batch)
        logits = model(
            encoder_outputs=encoded,
            attention_mask=torch.from_numpy(source_mask),
            decoder_input_ids=answer,
            past_key_values=cache,
            use_cache=True,
        ).logits
        cross = [_array(tensor) for tensor in tensors_from_cache(cache.cross_attention_cache)]
        if step == 0:
            yield _encoder_case(embeds, source_mask, cross)
        case = _decoder_case(
            step,
            model.get_input_embeddings()(answer),
            mask,
            past,
            logits,
            cache.self_attention_cache,
            encoder_attention_mask=torch.from_numpy(source_mask),
            cross=cross,
        )
        yield case
        yield from slot_cases(case, _array(answer))
        answer = _ids(checkpoint, random, batch, 1)
        mask = np.concatenate([mask, np.ones((batch, 1), np.int64)], axis=1)


def _embed_case(model: Any, ids: torch.Tensor) -> Case:
    return Case(
        graph="language_model/embed_tokens",
        name=f"batch {ids.shape[0]}",
        feed={"input_ids": _array(ids)},
        expected={"inputs_embeds": _array(model.get_input_embeddings()(ids))},
        real={},
    )


def _encoder_case(
    embeds: torch.Tensor, mask: npt.NDArray[np.int64], cross: list[npt.NDArray[Any]]
) -> Case:
    expected = _named("cross_key_values", cross)
    real = mask[:, None, :, None] != 0
    return Case(
        graph="language_model/encoder",
        name=f"batch {len(mask)}, {_ragged(mask)}",
        feed={"inputs_embeds": _array(embeds), "attention_mask": mask},
        expected=expected,
        real=dict.fromkeys(expected, real),
    )


def _decoder_case(
    step: int,
    embeds: torch.Tensor,
    mask: npt.NDArray[np.int64],
    past: list[npt.NDArray[Any]],
    logits: torch.Tensor,
    cache: DynamicCache,
    *,
    cross: list[npt.NDArray[Any]] | None = None,
    **others: torch.Tensor,
) -> Case:
    feed = {"inputs_embeds": _array(embeds), "attention_mask": mask}
    feed |= {name: _array(tensor) for name, tensor in others.items()}
    feed |= _named("past_key_values", past) | _named("cross_key_values", cross or [])
    present = _named("present_key_values", [_array(t) for t in tensors_from_cache(cache)])
    real = dict.fromkeys(present, mask[:, None, :, None] != 0)
    return Case(
        graph="language_model/decoder",
        name=f"batch {len(mask)}, past {past[0].shape[2]}, {_ragged(mask)}",
        feed=feed,
        expected={"logits": _array(logits), **present},
        real={"logits": mask[:, -embeds.shape[1] :, None] != 0, **real},
    )


def _named(prefix: str, tensors: list[npt.NDArray[Any]]) -> Arrays:
    kinds = ("key", "value")
    return {f"{prefix}.{i // 2}.{kinds[i % 2]}": tensor for i, tensor in enumerate(tensors)}


def _ragged(mask: npt.NDArray[np.int64]) -> str:
    return f"rows of {sorted(mask.sum(axis=1).tolist())}"


def _past(cache: DynamicCache, model: Any, batch: int) -> list[npt.NDArray[Any]]:
    if cache.layers:
        return [_array(tensor) for tensor in tensors_from_cache(cache)]
    shape = CacheShape.from_config(model.config)
    empty = (batch, shape.heads, 0, shape.head_dim)
    return [np.zeros(empty, np.float32) for _ in range(2 * shape.layers)]


def _ids(
    checkpoint: Checkpoint, random: np.random.Generator, batch: int, length: int
) -> torch.Tensor:
    vocab = checkpoint.config.text_config.vocab_size
    return torch.from_numpy(random.integers(3, vocab, (batch, length)))


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array.copy()
