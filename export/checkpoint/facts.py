"""Facts of a checkpoint that the server needs: tokenizers, special tokens, preprocessing, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.artifact.manifest import LanguageModelFacts, Preprocessing, TextFacts
from iblip.export.checkpoint.cache_shape import CacheShape
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.directory import object_from_json
from iblip.export.errors import CheckpointError


def write_tokenizers(checkpoint: Checkpoint, directory: Path) -> TextFacts:
    """Writes `text/tokenizer.json` into the build `directory`, and the Q-Former's if it reads text.

    Raises:
        CheckpointError: a tokenizer has no fast form.
    """
    (directory / "text").mkdir()
    processor = checkpoint.processor
    reads = checkpoint.projector == "instruction_qformer"
    names = ["tokenizer", *(["qformer_tokenizer"] if reads else [])]
    for name in names:
        tokenizer = getattr(processor, name)
        if not tokenizer.is_fast:
            message = f"{checkpoint.directory}: {type(tokenizer).__name__} has no fast form"
            raise CheckpointError(message)
        tokenizer.backend_tokenizer.save(str(directory / "text" / f"{name}.json"))
    plain = TextFacts(
        tokenizer="text/tokenizer.json",
        reproduces=checkpoint.rules.tokenizer,
        prompt_template=checkpoint.prompt_template,
        stop=checkpoint.stop,
        images=checkpoint.family.images,
    )
    if not reads:
        return plain
    return replace(
        plain,
        qformer_tokenizer="text/qformer_tokenizer.json",
        qformer_pad_token_id=processor.qformer_tokenizer.pad_token_id or 0,
        qformer_vocab_size=checkpoint.config.qformer_config.vocab_size,
        max_instruction=checkpoint.config.qformer_config.max_position_embeddings,
    )


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Returns what a client must do to an image.

    Raises:
        CheckpointError: the image processor does anything but decode, convert to RGB, resize,
            rescale and normalise, or resizes to another size than the vision encoder takes.
    """
    from PIL.Image import Resampling

    settings = image_processor_settings(checkpoint)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(step):
            raise CheckpointError(f"the image processor has {step} off, and the graph needs it on")
    size, side = settings["size"], checkpoint.config.vision_config.image_size
    if (size.get("height"), size.get("width")) != (side, side):
        raise CheckpointError(
            f"the image processor resizes to {size}, and the model takes squares of {side} pixels."
            f' Set size to {{"height": {side}, "width": {side}}} in preprocessor_config.json.'
        )
    return Preprocessing(
        height=side,
        width=side,
        resample=Resampling(settings["resample"]).name,
    )


def image_processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the image processor's settings, by their names in its config file."""
    settings: dict[str, Any] = checkpoint.processor.image_processor.to_dict()
    return settings


def language_model_facts(checkpoint: Checkpoint) -> LanguageModelFacts:
    """Returns the language model's sizes and special tokens.

    Raises:
        CheckpointError: no token ends an answer, or none marks the image's place in a prompt
            although the family has such a token.
    """
    config, tokenizer = checkpoint.config, getattr(checkpoint.processor, "tokenizer", None)
    text, generation = config.text_config, _generation_config(checkpoint)
    shape, is_encoder_decoder = CacheShape.from_config(text), bool(text.is_encoder_decoder)
    return LanguageModelFacts(
        architecture=text.model_type,
        is_encoder_decoder=is_encoder_decoder,
        hidden_size=text.hidden_size,
        num_layers=shape.layers,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        vocab_size=text.vocab_size,
        num_query_tokens=config.num_query_tokens,
        max_length=shape.positions,
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
        decoder_start_token_id=(
            getattr(text, "decoder_start_token_id", None) or 0 if is_encoder_decoder else None
        ),
        eos_token_ids=_eos_token_ids(checkpoint, tokenizer, generation),
        image_token_id=(
            _image_token_id(checkpoint, tokenizer) if checkpoint.family.marks_image else None
        ),
        start_token_id=checkpoint.rules.start_token_id,
        bytes_apart=checkpoint.rules.bytes_apart,
        default_max_new_tokens=(
            generation.get("max_new_tokens") or checkpoint.family.max_new_tokens
        ),
    )


def _eos_token_ids(
    checkpoint: Checkpoint, tokenizer: Any, generation: Mapping[str, Any]
) -> tuple[int, ...]:
    """Returns the tokens that end an answer: the config's or the tokenizer's, by family."""
    configured = _ids(getattr(checkpoint.config.text_config, "eos_token_id", None))
    if checkpoint.family.ends_as_configured and configured:
        return configured
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise CheckpointError(
            f"the tokenizer in {checkpoint.directory} has no end-of-sequence token, so no answer"
            " would end. Set eos_token in its tokenizer_config.json."
        )
    listed = _ids(generation.get("eos_token_id"))
    return listed if eos in listed else (eos,)


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(i for i in listed if i is not None)


def _image_token_id(checkpoint: Checkpoint, tokenizer: Any) -> int:
    token_id: int | None = checkpoint.config.image_token_index
    if token_id is None:
        token = getattr(checkpoint.processor, "image_token", "<image>")
        raise CheckpointError(
            f"{checkpoint.config_file} has no image_token_index, the token that marks"
            " the image's place in a prompt (older versions of transformers did not write it). Set"
            f" it to {tokenizer.convert_tokens_to_ids(str(token))}, the tokenizer's {token}."
        )
    return token_id


def _generation_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    from transformers import GenerationConfig

    path = checkpoint.directory / "generation_config.json"
    if not path.exists():
        return {}
    object_from_json(path)  # transformers takes one that is damaged for none at all
    try:
        config = GenerationConfig.from_pretrained(checkpoint.directory, local_files_only=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is refused by transformers: {error}") from error
    settings: Mapping[str, Any] = config.to_dict()
    return settings
