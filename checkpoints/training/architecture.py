"""Shapes of the demo models: the originals' structure, everything small.

What is kept from Salesforce/instructblip-vicuna-7b and -flan-t5-xl: a fused qkv with bias, erf
GELU, the LayerNorm epsilons, cross-attention on every second Q-Former layer, separate
feed-forwards for queries and text, an `<image>` token, and FLAN-T5's gated GELU with an output
layer of its own. From Salesforce/blip2-opt-2.7b: a Q-Former without text, and OPT's norms before
each part, learned positions, ReLU and tied embeddings. From MiniGPT-4's LLaMA-2 model: four
neighbouring patches a visual token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

from .pools import IMAGE_SIZE

PATCH = 12  # pixels: side of a patch
GRID = IMAGE_SIZE // PATCH  # patches along a side; a multiple of 3, so that no place shares one
QUERIES = 8
VISION_WIDTH = 128
QFORMER_WIDTH = 128
LANGUAGE_WIDTH = 128
POSITIONS = 1024  # tokens a decoder takes
MERGED = 4  # patches a visual token, without a Q-Former


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of the language model's tokenizer and of the Q-Former's."""

    size: int
    qformer_size: int
    image: int
    pad: int
    eos: int
    bos: int | None = None
    qformer_pad: int = 0


def vision_config() -> InstructBlipVisionConfig:
    """Five layers of width 128 over 36 patches of 12x12 pixels and a class token."""
    return InstructBlipVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        initializer_range=0.02,
    )


def qformer_config(vocabulary: Vocabulary) -> InstructBlipQFormerConfig:
    """Four layers of width 128; layers 0 and 2 look at the image."""
    return InstructBlipQFormerConfig(
        vocab_size=vocabulary.qformer_size,
        hidden_size=QFORMER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * QFORMER_WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=256,
        initializer_range=0.04,  # 0.02 is meant for width 768 and starts slowly at 128
        pad_token_id=vocabulary.qformer_pad,
        encoder_hidden_size=VISION_WIDTH,
    )


def llama_config(vocabulary: Vocabulary) -> LlamaConfig:
    """Four layers of width 128, four heads of 32, 1024 positions."""
    return LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=LANGUAGE_WIDTH,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )


def opt_config(vocabulary: Vocabulary) -> OPTConfig:
    """Four layers of width 128, four heads of 32, 1024 learned positions, tied embeddings."""
    return OPTConfig(
        vocab_size=vocabulary.size,
        hidden_size=LANGUAGE_WIDTH,
        ffn_dim=4 * LANGUAGE_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        init_std=0.04,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )


def t5_config(vocabulary: Vocabulary) -> T5Config:
    """Three and three layers of width 128, four heads of 32, gated GELU, untied output layer."""
    untyped: dict[str, Any] = {
        "tie_word_embeddings": False,
        "decoder_start_token_id": vocabulary.pad,
    }
    return T5Config(
        vocab_size=vocabulary.size,
        d_model=LANGUAGE_WIDTH,
        d_kv=32,
        d_ff=344,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.eos,
        **untyped,
    )


def instructblip_config(vocabulary: Vocabulary, text: LlamaConfig | T5Config) -> InstructBlipConfig:
    """A whole InstructBLIP around one language model."""
    return InstructBlipConfig(
        vision_config=vision_config(),
        qformer_config=qformer_config(vocabulary),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=vocabulary.image,
    )


def plain_vision_config() -> Blip2VisionConfig:
    """`vision_config`, by BLIP-2's name for it."""
    return Blip2VisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        initializer_range=0.02,
    )


def plain_qformer_config() -> Blip2QFormerConfig:
    """`qformer_config` without a text branch, as BLIP-2's."""
    return Blip2QFormerConfig(
        hidden_size=QFORMER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * QFORMER_WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.04,
        encoder_hidden_size=VISION_WIDTH,
        use_qformer_text_input=False,
    )


def blip2_config(vocabulary: Vocabulary, text: OPTConfig | T5Config) -> Blip2Config:
    """A whole BLIP-2 around one language model."""
    return Blip2Config(
        vision_config=plain_vision_config(),
        qformer_config=plain_qformer_config(),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=vocabulary.image,
    )
