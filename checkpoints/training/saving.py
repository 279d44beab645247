"""Writes a trained model as the Hugging Face directory its originals come in."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2Processor,
    BlipImageProcessorPil,
    GenerationConfig,
    InstructBlipProcessor,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .architecture import QUERIES
from .loop import MEAN, STD
from .minigpt4 import MiniGPT4
from .pools import IMAGE_SIZE


def save(
    model: Any,
    language: PreTrainedTokenizerBase,
    qformer: PreTrainedTokenizerBase,
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """Write the directory beside its destination, then move its files over.

    Args:
        model: stays as it is, float32.
        language: the language model's tokenizer.
        qformer: the Q-Former's, where it has one.
        directory: a README and links there are kept.
        dtype: what the stored weights are rounded to.
    """
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    model.train(False)
    if isinstance(model, MiniGPT4):
        _save_parts(model, language, beside, dtype)
    else:
        _save_whole(model, language, qformer, beside, dtype)
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(beside.rglob("*")):
        if path.is_file():
            target = directory / path.relative_to(beside)
            target.parent.mkdir(exist_ok=True)
            path.chmod(0o644)
            path.replace(target)
    shutil.rmtree(beside)


def _save_whole(
    model: Any,
    language: PreTrainedTokenizerBase,
    qformer: PreTrainedTokenizerBase,
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """A model that transformers has a class for."""
    model.generation_config = _generation(model.config.text_config)
    deepcopy(model).to(dtype).save_pretrained(directory)
    plain = model.config.model_type == "blip-2"
    if plain:
        _put_vision_apart(directory)
    pixels = _image_processor()
    pixels.save_pretrained(directory)  # preprocessor_config.json, which older readers want
    tokenizers = [language] if plain else [language, qformer]
    processor: Any = Blip2Processor if plain else InstructBlipProcessor
    processor(pixels, *tokenizers, QUERIES).save_pretrained(directory)
    if not model.config.use_decoder_only_language_model:
        _say_untied(directory / "config.json")


def _put_vision_apart(directory: Path) -> None:
    """Split `model.safetensors` in two, as transformers does: the vision encoder, and the rest.

    The BLIP-2 demos have one vision encoder, which is frozen in their training: in the repository
    the first file of one is a link to the other's.
    """
    whole = directory / SAFE_WEIGHTS_NAME
    tensors = load_file(whole)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {name: names[not name.startswith("vision_model.")] for name in sorted(tensors)}
    for file in names:
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, separators=(",", ":")))
    whole.unlink()


def _save_parts(
    model: MiniGPT4, language: PreTrainedTokenizerBase, directory: Path, dtype: torch.dtype
) -> None:
    """MiniGPT-4, which it has none for."""
    model.save(directory, dtype)
    _generation(model.config.text).save_pretrained(directory)
    _image_processor().save_pretrained(directory)
    language.save_pretrained(directory)


def _generation(text: Any) -> Any:
    generation: Any = GenerationConfig
    return generation(
        bos_token_id=getattr(text, "bos_token_id", None),
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        decoder_start_token_id=getattr(text, "decoder_start_token_id", None),
    )


def _image_processor() -> Any:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return BlipImageProcessorPil(size=size, image_mean=MEAN, image_std=STD)


def _say_untied(path: Path) -> None:
    """Write `tie_word_embeddings: false`, the key by which the originals say it.

    transformers 5 forgets the key it was given and saves its own spelling, which older readers
    take for tied weights and scaled logits.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["tie_word_embeddings"] = False
    config["text_config"].pop("scale_decoder_outputs", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
