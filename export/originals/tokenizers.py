"""Tokenizers and image processors with the settings that LAVIS and MiniGPT-4 give them.

They are transformers' own objects, as a Hugging Face checkpoint of the same model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.sentencepiece_files import check_sentencepiece
from iblip.export.errors import CheckpointError
from iblip.export.families.parts import Parts
from iblip.export.models.model import Model
from iblip.export.models.table import BERT
from iblip.export.originals.tokenisation import (
    is_legacy,
    read_as_fast_t5,
    read_as_slow_llama,
    stripping_tokens,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue in CLIP's training (LAVIS, blip_processors.py)."""

DEC = "[DEC]"
"""The token that LAVIS adds to BERT's vocabulary (blip2.py, `init_tokenizer`)."""

END, PADDING = "</s>", "[PAD]"


def processor_of(
    model: Model, parts: Mapping[str, Path], *, image_size: int, queries: int
) -> tuple[Any, str]:
    """Returns transformers' processor of `model`, or its parts if transformers has none.

    Args:
        model: a row of the table.
        parts: with `language_model`, and `qformer_tokenizer` if it is needed and given.
        image_size: height and width of the images, in pixels.
        queries: rows of a visual prompt.

    Returns:
        The processor, and the tokenizer that it reproduces, as `TextRules.tokenizer`.

    Raises:
        CheckpointError: a tokenizer cannot be loaded.
    """
    import transformers

    images = transformers.BlipImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=3,  # Pillow's bicubic
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    directory = parts["language_model"]
    prepare = SETTINGS.get((model.architecture, model.text["model_type"]), _as_it_is)
    tokenizer = _tokenizer(directory, "language_model")
    reproduced = prepare(tokenizer, directory)
    if model.family.processor is None:
        return Parts(image_processor=images, tokenizer=tokenizer), reproduced
    kind = getattr(transformers, model.family.processor)
    reads = model.family.projector == "instruction_qformer"
    instruction = [_instruction_tokenizer(parts)] if reads else []
    return kind(images, tokenizer, *instruction, num_query_tokens=queries), reproduced


def _tokenizer(source: Path | str, part: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    if isinstance(source, Path):
        check_sentencepiece(source)
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of --part {part} ({source}) cannot be loaded: {error}"
        ) from error


def _instruction_tokenizer(parts: Mapping[str, Path]) -> Any:
    """Returns BERT's tokenizer with truncation on the left and the token `[DEC]`."""
    given = parts.get("qformer_tokenizer")
    try:
        tokenizer = _tokenizer(given or BERT, "qformer_tokenizer", truncation_side="left")
    except CheckpointError as error:
        if given is not None:
            raise
        raise CheckpointError(
            f"the Q-Former's tokenizer, {BERT}, is not in the hub's cache, and cannot be had from"
            " the hub. Give its directory: --part qformer_tokenizer=DIR"
        ) from error
    tokenizer.add_special_tokens({"bos_token": DEC})
    return tokenizer


def _as_it_is(tokenizer: Any, directory: Path) -> str:
    return ""


def _lavis_vicuna(tokenizer: Any, directory: Path) -> str:
    """Sets what LAVIS does (blip2_vicuna_instruct.py): prompts begin with `</s>`, its BOS token.

    The slow tokenizer, which LAVIS uses, prepends whatever its BOS token is; the fast one has the
    token in its post-processor. As LAVIS names its special tokens by plain strings, each takes the
    white space around it.
    """
    from tokenizers.processors import TemplateProcessing

    if tokenizer.pad_token in (None, tokenizer.unk_token):
        tokenizer.add_special_tokens({"pad_token": PADDING})
    tokenizer.add_special_tokens({"bos_token": END, "eos_token": END, "unk_token": END})
    tokenizer.truncation_side = "left"
    legacy = is_legacy(directory)
    reads = read_as_slow_llama(tokenizer, legacy=legacy, strips={})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A",
        pair=f"{END} $A {END}:1 $B:1",
        special_tokens=[(END, tokenizer.convert_tokens_to_ids(END))],
    )
    return f"LlamaTokenizer of transformers 4.33.2, legacy={legacy}" if reads else ""


def _minigpt4_llama(tokenizer: Any, directory: Path) -> str:
    """MiniGPT-4's transformers (environment.yml) knows no `legacy`, and behaves as with it."""
    reads = read_as_slow_llama(tokenizer, legacy=True, strips=stripping_tokens(directory))
    return "LlamaTokenizer of transformers 4.30.0" if reads else ""


def _lavis_t5(tokenizer: Any, directory: Path) -> str:
    """LAVIS's `T5TokenizerFast` (blip2_t5_instruct.py, blip2_t5.py)."""
    read_as_fast_t5(tokenizer, directory)
    return "T5TokenizerFast of transformers 4.33.2"


SETTINGS: Mapping[tuple[str, str], Callable[[Any, Path], str]] = {
    ("InstructBlipForConditionalGeneration", "llama"): _lavis_vicuna,
    ("InstructBlipForConditionalGeneration", "t5"): _lavis_t5,
    ("Blip2ForConditionalGeneration", "t5"): _lavis_t5,
    ("MiniGPT4ForConditionalGeneration", "llama"): _minigpt4_llama,
}
"""What makes an original's tokenizer of transformers', by architecture and `model_type`. Each
returns `TextRules.tokenizer`."""
