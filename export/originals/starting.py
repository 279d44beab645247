"""The token that an original's `generate` begins with, where it gives embeddings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iblip.export.checkpoint.directory import object_from_json

GENERATION_CONFIG = "generation_config.json"


def start_token_of(text_config: Any, directory: Path) -> int | None:
    """Returns the token that a decoder-only language model's `generate` begins with.

    LAVIS and MiniGPT-4 pass `inputs_embeds` and no ids. Up to 4.37, `generate` of transformers then
    makes ids of the generation config's BOS token, which its logits processors see. It is not the
    tokenizer's: LAVIS gives Vicuna's tokenizer another one.

    Args:
        text_config: of the language model, which counts without a generation config.
        directory: of the language model.

    Returns:
        Its id; `None` for an encoder-decoder, whose start token is another, or if none is named.
    """
    if text_config.is_encoder_decoder:
        return None
    if not (directory / GENERATION_CONFIG).exists():
        return _id(text_config.bos_token_id)
    return _id(object_from_json(directory / GENERATION_CONFIG).get("bos_token_id"))


def _id(value: Any) -> int | None:
    return value if isinstance(value, int) else None
