"""Counts the parameters of a geometry from the fields of its config alone.

Every function counts those of transformers' module of that name. A weight with two names counts
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iblip.export.models.geometry import Config


def parameters(
    vision: Config,
    qformer: Config | None,
    text: Config,
    *,
    queries: int,
    merged_patches: int | None,
    reads_instruction: bool,
) -> dict[str, int]:
    """Returns the number of parameters of each part.

    The parts are `vision_encoder`, `qformer`, `projection` and `language_model`.

    Args:
        vision: of the ViT.
        qformer: of the Q-Former; `None` if patches are merged.
        text: of the language model, with its `model_type`.
        queries: rows of a visual prompt.
        merged_patches: patches that become one row of it; effective only without a Q-Former.
        reads_instruction: whether the Q-Former reads text too.
    """
    width = text["d_model"] if text["model_type"] == "t5" else text["hidden_size"]
    if qformer is None:
        projector, features = 0, vision["hidden_size"] * (merged_patches or 1)
    else:
        features = qformer["hidden_size"]
        projector = _qformer(qformer, reads_instruction=reads_instruction) + queries * features
    return {
        "vision_encoder": _vision(vision),
        "qformer": projector,
        "projection": _linear(features, width),
        "language_model": LANGUAGE_MODELS[text["model_type"]](text),
    }


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return outputs * (inputs + bias)


def _norm(width: int) -> int:
    return 2 * width  # a weight and a bias


def _vision(config: Config) -> int:
    width, inner = config["hidden_size"], config["intermediate_size"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    embeddings = _linear(3 * config["patch_size"] ** 2, width) + (1 + patches + 1) * width
    attention = _linear(width, 3 * width) + _linear(width, width)
    mlp = _linear(width, inner) + _linear(inner, width)
    layer = attention + mlp + 2 * _norm(width)
    return int(embeddings + config["num_hidden_layers"] * layer + _norm(width))


def _qformer(config: Config, *, reads_instruction: bool) -> int:
    width, inner = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    crossed = -(-layers // config["cross_attention_frequency"])
    own = 4 * _linear(width, width) + _norm(width)
    seen = config["encoder_hidden_size"]
    cross = 2 * _linear(width, width) + 2 * _linear(seen, width) + _norm(width)
    mlp = _linear(width, inner) + _linear(inner, width) + _norm(width)
    text = (config["vocab_size"] + config["max_position_embeddings"]) * width
    # Text and queries have a feed-forward each.
    both = text + layers * mlp if reads_instruction else 0
    return int(_norm(width) + layers * (own + mlp) + crossed * cross + both)


def _llama(config: Config) -> int:
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key_value = width // heads * config.get("num_key_value_heads", heads)
    layer = 2 * width * (width + key_value) + 3 * width * inner + 2 * width
    tables = 1 if config.get("tie_word_embeddings") else 2
    return int(tables * config["vocab_size"] * width + config["num_hidden_layers"] * layer + width)


def _opt(config: Config) -> int:
    width, inner = config["hidden_size"], config["ffn_dim"]
    mlp = _linear(width, inner) + _linear(inner, width)
    layer = 4 * _linear(width, width) + mlp + 2 * _norm(width)
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    positions = config["max_position_embeddings"] + 2  # OPT's begin at 2
    rows = tables * config["vocab_size"] + positions
    return int(rows * width + config["num_hidden_layers"] * layer + _norm(width))


def _t5(config: Config) -> int:
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    attention, mlp = 4 * width * inner, 3 * width * config["d_ff"]  # gated: three matrices
    encoder = config["num_layers"] * (attention + mlp + 2 * width)
    decoder = config["num_decoder_layers"] * (2 * attention + mlp + 3 * width)
    biases = 2 * config["relative_attention_num_buckets"] * config["num_heads"]
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    return int(tables * config["vocab_size"] * width + encoder + decoder + biases + 2 * width)


LANGUAGE_MODELS: Mapping[str, Callable[[Config], int]] = {
    "llama": _llama,
    "opt": _opt,
    "t5": _t5,
}
"""The text config's `model_type` to its count."""
