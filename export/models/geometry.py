"""The geometries of the released models, in transformers' field names. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
"""Part of a checkpoint's config: transformers' field names to values."""

VIT_G: Config = {
    "hidden_size": 1408,
    "intermediate_size": 6144,  # int(1408 * 4.3637)
    "num_hidden_layers": 39,  # of 40 in the file: the last is not run
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}
"""EVA ViT-g/14 as LAVIS cuts it (lavis/models/eva_vit.py, `create_eva_vit_g`)."""

VIT_G_364: Config = {**VIT_G, "image_size": 364}
"""The same for the COCO captioners, whose positions are 26 by 26."""

VIT_G_448: Config = {**VIT_G, "image_size": 448}
"""The same for MiniGPT-v2, which interpolates the positions of the file to 32 by 32."""

QFORMER: Config = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}
"""BERT base with cross-attention in every other layer (LAVIS, blip2.py, `init_Qformer`)."""

INSTRUCTION_QFORMER: Config = {**QFORMER, "vocab_size": 30523}
"""InstructBLIP's: BERT's vocabulary and `[DEC]`."""

QUERIES = 32
"""Rows of a visual prompt, of every model with a Q-Former."""


def _llama(**sizes: Any) -> Config:
    common = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**common, **sizes}


def _llama_7b(**changes: Any) -> Config:
    return _llama(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        **changes,
    )


def _llama_13b(**changes: Any) -> Config:
    return _llama(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        **changes,
    )


def _opt(**sizes: Any) -> Config:
    common = {
        "model_type": "opt",
        "vocab_size": 50272,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "pad_token_id": 1,
        "eos_token_id": 50118,  # a line break (LAVIS, blip2_opt.py)
    }
    return {**common, "word_embed_proj_dim": sizes["hidden_size"], **sizes}


def _flan_t5(**sizes: Any) -> Config:
    common = {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_kv": 64,
        "num_layers": 24,
        "num_decoder_layers": 24,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",  # where FLAN-T5's own config has gelu_new (LAVIS, blip2_t5.py)
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return {**common, **sizes}


# Vicuna 1.1 has LLaMA's 32,000 tokens, and LAVIS adds [PAD]; MiniGPT-4's Vicuna 0 came with one.
VICUNA_7B, VICUNA_13B = _llama_7b(vocab_size=32001), _llama_13b(vocab_size=32001)
LLAMA_2_7B = _llama_7b(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5)
OPT_2_7B = _opt(hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32)
OPT_6_7B = _opt(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32)
FLAN_T5_XL = _flan_t5(d_model=2048, d_ff=5120, num_heads=32)
FLAN_T5_XXL = _flan_t5(d_model=4096, d_ff=10240, num_heads=64)
