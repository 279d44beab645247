"""The relative position bias of T5's decoder over slots is transformers' own, looked up."""

from __future__ import annotations

import torch
from transformers import T5Config

from iblip.export.components.t5_slots import FLOAT16_SCALE, T5BatchedDecoder, scale_of

LONG = 300
"""Positions: more than `relative_attention_max_distance`, from which all are alike."""


@torch.no_grad()
def test_the_bias_of_every_distance_is_transformers() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    decoder = T5BatchedDecoder(config)
    first = decoder.language_model.decoder.block[0].layer[0].SelfAttention
    torch.nn.init.normal_(first.relative_attention_bias.weight)
    positions = torch.arange(LONG)
    # One row at each position, as in a step of LONG rows: [LONG, heads, 1, LONG]
    bias = decoder._bias(positions[:, None], positions)[:, :, 0].swapaxes(0, 1)
    expected = first.compute_bias(LONG, LONG)[0]  # [heads, LONG, LONG]
    seen = positions <= positions[:, None]
    assert torch.equal(bias[:, seen], expected[:, seen])
    assert (bias[:, ~seen] == torch.finfo(torch.float32).min).all()
    assert bias[0, -1].unique().numel() > 16  # not all alike


def test_only_a_float16_stream_is_scaled_and_by_a_power_of_two() -> None:
    assert scale_of(torch.float32) == scale_of(torch.bfloat16) == 1.0
    half = torch.tensor([1.5, 60000.0, -3.25], dtype=torch.float16)
    assert torch.equal(half * scale_of(torch.float16) / FLOAT16_SCALE, half)
