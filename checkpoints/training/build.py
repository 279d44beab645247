"""Builds one demo checkpoint: tokenizers, seven training stages, and a Hugging Face directory.

    1. vision     the vision encoder with auxiliary heads; shared by both models
    2. placing    the same, each patch also naming its position; shared by both models
    3. language   the language model on text
    4. qformer    the Q-Former on frozen image features, with heads; shared by both models
    5. bridge     Q-Former, projection and language model on frozen image features
    6. joint      everything, the vision encoder last
    7. polish     everything, from a lower rate

Every stage is seeded and kept in the cache, so a build that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BlipImageProcessorPil,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    PreTrainedTokenizerBase,
    T5Config,
)

from .architecture import QUERIES, Vocabulary, llama_config, model_config, t5_config
from .batches import Encoder
from .bridge import BRIDGE, JOINT, POLISH, QFORMER, Bridge
from .language import SCHEDULE, train_language
from .loop import MEAN, STD, Schedule
from .pools import IMAGE_SIZE, TRAINING, VALIDATION, PoolSpec, pool_from_spec
from .stages import kept
from .text import train_llama_tokenizer, train_qformer_tokenizer, train_t5_tokenizer, vocabulary
from .vision import VisionOptions, train_placing, train_vision

log = logging.getLogger(__name__)
VISION = VisionOptions()


@dataclass(frozen=True)
class Recipe:
    """What differs between the two models."""

    directory: str
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    text_config: Callable[[Vocabulary], LlamaConfig | T5Config]
    decoder_only: bool
    language: Schedule
    seed: int


RECIPES: Mapping[str, Recipe] = {
    "vicuna": Recipe(
        "instructblip-demo-vicuna", train_llama_tokenizer, llama_config, True, SCHEDULE, 21
    ),
    "flant5": Recipe(
        "instructblip-demo-flant5",
        train_t5_tokenizer,
        t5_config,
        False,
        replace(SCHEDULE, steps=500),
        22,
    ),
}


STAGES = ("vision", "placing", "language", "qformer", "bridge", "joint", "polish")


@dataclass(frozen=True)
class BuildOptions:
    """How much training.

    Attributes:
        shorten: divides the steps of all stages but the first, for a trial run.
        until: the last stage to run; a directory is written after each from `bridge` on.
    """

    pool: PoolSpec = TRAINING
    validation: PoolSpec = VALIDATION
    vision: VisionOptions = VISION
    qformer: Schedule = QFORMER
    bridge: Schedule = BRIDGE
    joint: Schedule = JOINT
    polish: Schedule = POLISH
    shorten: float = 1.0
    until: str = "polish"

    def __post_init__(self) -> None:
        if self.shorten < 1:
            raise ValueError(f"shorten is {self.shorten}; 1 or more is needed")
        if self.until not in STAGES:
            raise ValueError(f"until is {self.until!r}; one of {', '.join(STAGES)} is needed")

    def steps(self, schedule: Schedule) -> Schedule:
        """`schedule`, shortened."""
        return replace(schedule, steps=max(1, int(schedule.steps / self.shorten)))


def build(name: str, output: Path, cache: Path, options: BuildOptions | None = None) -> None:
    """Train one model and put its directory under `output`, whole or not at all.

    Args:
        name: a key of `RECIPES`.
        output: where `instructblip-demo-NAME` is put; a README and links there are kept.
        cache: pools and finished stages.
        options: how much training.
    """
    options = options or BuildOptions()
    recipe = RECIPES[name]
    language, qformer = recipe.tokenizer(), train_qformer_tokenizer()
    words = vocabulary(language, qformer)
    torch.manual_seed(recipe.seed)
    model = new_model(model_config(words, recipe.text_config(words)))
    encoder = Encoder(language, qformer, decoder_only=recipe.decoder_only)
    pool = pool_from_spec(options.pool, cache)
    validation = pool_from_spec(options.validation, cache)
    bridge = Bridge(model, encoder, validation, cache / f"features-{options.pool.name}.npy")
    shared = {
        "qformer": model.qformer, "queries": bridge.query_tokens, "heads": bridge.heads
    }  # fmt: skip
    everything = {"model": model, "heads": bridge.heads}
    seed, steps = recipe.seed, options.steps
    stages: Mapping[str, tuple[str, Mapping[str, nn.Module], Callable[[], float]]] = {
        "vision": (
            "vision", {"vision": model.vision_model},
            lambda: train_vision(model.vision_model, options.vision, cache),
        ),
        "placing": (
            "placing", {"vision": model.vision_model},
            lambda: train_placing(model.vision_model, options.vision, cache),
        ),
        "language": (
            f"{name}-language", {"language": model.language_model},
            lambda: train_language(model.language_model, encoder, steps(recipe.language)),
        ),
        "qformer": (
            "qformer", shared, lambda: bridge.train_qformer(pool, steps(options.qformer), 0)
        ),
        "bridge": (
            f"{name}-bridge", everything,
            lambda: bridge.train_bridge(pool, steps(options.bridge), seed),
        ),
        "joint": (
            f"{name}-joint", everything,
            lambda: bridge.train_jointly(pool, steps(options.joint), seed),
        ),
        "polish": (
            f"{name}-polish", everything,
            lambda: bridge.train_polish(pool, steps(options.polish), seed),
        ),
    }  # fmt: skip
    for stage in STAGES[: STAGES.index(options.until) + 1]:
        file, modules, train = stages[stage]
        torch.manual_seed(seed)
        took = kept(cache / f"{file}.safetensors", modules, train)
        log.info("%s: stage %s took %.0f s", name, stage, took)
        if stage in ("bridge", "joint", "polish"):
            save(model, language, qformer, output / recipe.directory)


def new_model(config: InstructBlipConfig) -> InstructBlipForConditionalGeneration:
    """A fresh model.

    Its queries start at random: left at zero they would all stay alike. T5's output layer gets
    weights of its own, as FLAN-T5's has, where transformers would share the embedding's.
    """
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=1.0)
    if not model.config.use_decoder_only_language_model:
        output = model.language_model.lm_head
        width = output.weight.shape[1]
        output.weight = torch.nn.Parameter(torch.randn_like(output.weight) * width**-0.5)
    return model


def save(
    model: InstructBlipForConditionalGeneration,
    language: PreTrainedTokenizerBase,
    qformer: PreTrainedTokenizerBase,
    directory: Path,
) -> None:
    """Write the Hugging Face directory beside its destination, then move its files over."""
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    text: Any = model.config.text_config
    generation: Any = GenerationConfig
    model.generation_config = generation(
        bos_token_id=getattr(text, "bos_token_id", None),
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        decoder_start_token_id=getattr(text, "decoder_start_token_id", None),
    )
    model.train(False)
    model.save_pretrained(beside)
    pixels = BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=MEAN, image_std=STD
    )
    pixels.save_pretrained(beside)  # preprocessor_config.json, which older readers want
    processor: Any = InstructBlipProcessor
    processor(pixels, language, qformer, QUERIES).save_pretrained(beside)
    if not model.config.use_decoder_only_language_model:
        _say_untied(beside / "config.json")
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(beside.rglob("*")):
        if path.is_file():
            target = directory / path.relative_to(beside)
            target.parent.mkdir(exist_ok=True)
            path.chmod(0o644)
            path.replace(target)
    shutil.rmtree(beside)


def _say_untied(path: Path) -> None:
    """Write `tie_word_embeddings: false`, the key by which the originals say it.

    transformers 5 forgets the key it was given and saves its own spelling, which older readers
    take for tied weights and scaled logits.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["tie_word_embeddings"] = False
    config["text_config"].pop("scale_decoder_outputs", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
