"""Tokenizers and special tokens of a checkpoint, as the server needs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.errors import CheckpointError
from export.manifest import LanguageModelFacts, Preprocessing, TextFacts

DEFAULT_MAX_NEW_TOKENS = 256
"""Where the generation config is silent: LAVIS's `max_length`."""

DEFAULT_T5_LENGTH = 512
"""Where the config is silent: the length that T5 and FLAN-T5 were trained with."""


def write_tokenizers(checkpoint: Checkpoint, directory: Path) -> TextFacts:
    """Writes `text/tokenizer.json` and `text/qformer_tokenizer.json` into the build `directory`.

    Raises:
        CheckpointError: a tokenizer has no fast form.
    """
    (directory / "text").mkdir()
    processor: Any = checkpoint.processor
    for tokenizer, name in (
        (processor.tokenizer, "tokenizer"),
        (processor.qformer_tokenizer, "qformer_tokenizer"),
    ):
        if not tokenizer.is_fast:
            message = f"{checkpoint.directory}: {type(tokenizer).__name__} has no fast form"
            raise CheckpointError(message)
        tokenizer.backend_tokenizer.save(str(directory / "text" / f"{name}.json"))
    return TextFacts(
        tokenizer="text/tokenizer.json",
        qformer_tokenizer="text/qformer_tokenizer.json",
        qformer_pad_token_id=processor.qformer_tokenizer.pad_token_id or 0,
        max_instruction=checkpoint.config.qformer_config.max_position_embeddings,
    )


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """What a client must do to an image.

    Raises:
        CheckpointError: the image processor does something else than decode, convert to RGB,
            resize, rescale and normalise, or another size than the vision encoder takes.
    """
    from PIL.Image import Resampling

    settings = image_processor_settings(checkpoint)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(step):
            raise CheckpointError(f"the image processor has {step} off, and the graph needs it on")
    size, wanted = settings["size"], checkpoint.config.vision_config.image_size
    if (size["height"], size["width"]) != (wanted, wanted):
        raise CheckpointError(f"the image processor resizes to {size}, the model takes {wanted}")
    return Preprocessing(
        height=size["height"],
        width=size["width"],
        resample=Resampling(settings["resample"]).name,
    )


def image_processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image processor's own settings, by their names in its config file."""
    processor: Any = checkpoint.processor
    settings: dict[str, Any] = processor.image_processor.to_dict()
    return settings


def language_model_facts(checkpoint: Checkpoint) -> LanguageModelFacts:
    """The language model's shape and special tokens.

    Raises:
        CheckpointError: the tokenizer has no end-of-sequence token, so no answer would ever end.
    """
    config, tokenizer = checkpoint.config, getattr(checkpoint.processor, "tokenizer", None)
    text, generation = config.text_config, _generation_config(checkpoint)
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise CheckpointError(
            f"the tokenizer in {checkpoint.directory} has no end-of-sequence token, so no answer"
            " would end. Set eos_token in its tokenizer_config.json."
        )
    is_encoder_decoder = not config.use_decoder_only_language_model
    return LanguageModelFacts(
        architecture=text.model_type,
        is_encoder_decoder=is_encoder_decoder,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_query_tokens=config.num_query_tokens,
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
        eos_token_ids=_eos_token_ids(eos, generation.get("eos_token_id")),
        image_token_id=config.image_token_index,
        default_max_new_tokens=generation.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS,
        **(_t5_shape(text) if is_encoder_decoder else _llama_shape(text)),
    )


def _eos_token_ids(tokenizer: int, generation: int | list[int] | None) -> tuple[int, ...]:
    """The tokenizer's word counts: some hub configs name another token (LAVIS issue 509)."""
    listed = generation if isinstance(generation, list) else [generation]
    return tuple(i for i in listed if i is not None) if tokenizer in listed else (tokenizer,)


def _llama_shape(text: Any) -> dict[str, Any]:
    return {
        "num_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": text.head_dim or text.hidden_size // text.num_attention_heads,
        "max_length": text.max_position_embeddings,
        "decoder_start_token_id": None,
    }


def _t5_shape(text: Any) -> dict[str, Any]:
    return {
        "num_layers": text.num_decoder_layers,
        "num_key_value_heads": text.num_heads,
        "head_dim": text.d_kv,
        "max_length": getattr(text, "n_positions", DEFAULT_T5_LENGTH),
        "decoder_start_token_id": text.decoder_start_token_id or 0,
    }


def _generation_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(checkpoint.directory, local_files_only=True)
    except OSError:
        return {}
    settings: Mapping[str, Any] = config.to_dict()
    return settings
