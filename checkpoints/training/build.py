"""Builds one demo checkpoint: tokenizers, training stages, and a Hugging Face directory.

    vision     the vision encoder with auxiliary heads; shared by the models that train one
    placing    the same, each patch also naming its position
    language   the language model on text
    qformer    the Q-Former on frozen image features, with heads; shared by all of its kind
    bridge     projector and language model on frozen image features
    joint      everything, the vision encoder last
    polish     everything, from a lower rate

A recipe says which of these a model goes through. Every stage is seeded and kept in the cache, so a
build that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .batches import Encoder
from .bridge import Bridge
from .heads import Heads, InstructionHeads, ListHeads, SceneHeads
from .language import train_language
from .loop import Schedule
from .minigpt4 import MiniGPT4
from .parts import new_model, take_parts
from .pools import TRAINING, VALIDATION, PoolSpec, pool_from_spec
from .projectors import InstructionQFormer, PlainQFormer, Projector
from .recipes import ALL_STAGES, RECIPES
from .saving import save
from .stages import kept
from .text import train_qformer_tokenizer, vocabulary
from .vision import VisionOptions, train_placing, train_vision

log = logging.getLogger(__name__)
DEMOS = Path(__file__).resolve().parents[1]
VISION = VisionOptions()
WHOLE = ("bridge", "joint", "polish")  # stages after which a model can answer


@dataclass(frozen=True)
class BuildOptions:
    """How much training.

    Attributes:
        shorten: divides the steps of all stages but the vision encoder's, for a trial run.
        until: the last stage to run; a directory is written after each from `bridge` on.
    """

    pool: PoolSpec = TRAINING
    validation: PoolSpec = VALIDATION
    vision: VisionOptions = VISION
    shorten: float = 1.0
    until: str = "polish"

    def __post_init__(self) -> None:
        if self.shorten < 1:
            raise ValueError(f"shorten is {self.shorten}; 1 or more is needed")
        if self.until not in ALL_STAGES:
            raise ValueError(f"until is {self.until!r}; one of {', '.join(ALL_STAGES)} is needed")

    def steps(self, schedule: Schedule) -> Schedule:
        """`schedule`, shortened."""
        return replace(schedule, steps=max(1, int(schedule.steps / self.shorten)))

    def reaches(self, stage: str) -> bool:
        """Whether `stage` is to be run."""
        order = list(ALL_STAGES)
        return order.index(stage) <= order.index(self.until)


@dataclass(frozen=True)
class Stage:
    """One stage of one model: what it trains, and its file in the cache."""

    file: str
    modules: Mapping[str, nn.Module]
    train: Callable[[], float]


def build(name: str, output: Path, cache: Path, options: BuildOptions | None = None) -> None:
    """Train one model and put its directory under `output`, whole or not at all.

    Args:
        name: a key of `RECIPES`.
        output: where its directory is put; a README and links there are kept.
        cache: pools and finished stages.
        options: how much training.
    """
    options = options or BuildOptions()
    recipe = RECIPES[name]
    language, qformer = recipe.tokenizer(), train_qformer_tokenizer()
    words = vocabulary(language, qformer, recipe.form)
    torch.manual_seed(recipe.seed)
    model = new_model(recipe.family, words, recipe.text_config(words), recipe.form)
    take_parts(model, {part: DEMOS / demo for part, demo in recipe.taken.items()})
    encoder = Encoder(language, qformer, decoder_only=recipe.decoder_only, form=recipe.form)
    for stage, work in _stages(name, model, encoder, cache, options).items():
        torch.manual_seed(recipe.seed)
        took = kept(cache / f"{work.file}.safetensors", work.modules, work.train)
        log.info("%s: stage %s took %.0f s", name, stage, took)
        if stage in WHOLE:
            save(model, language, qformer, output / recipe.directory, recipe.dtype)


def _stages(
    name: str, model: Any, encoder: Encoder, cache: Path, options: BuildOptions
) -> dict[str, Stage]:
    """The stages to run, in order."""
    recipe = RECIPES[name]
    pool = pool_from_spec(options.pool, cache)
    validation = pool_from_spec(options.validation, cache)
    projector = projector_of(model, encoder)
    features = cache / f"features-{'taken-' if recipe.taken else ''}{options.pool.name}.npy"
    heads = heads_of(model)
    bridge = Bridge(model, projector, heads, encoder, recipe.diet, validation, features)
    everything = {"model": model, "heads": bridge.heads}
    shared = {**projector.modules, "heads": bridge.heads}
    vision, seed = {"vision": model.vision_model}, recipe.seed

    def lasting(stage: str) -> Schedule:
        schedule = recipe.stages[stage]
        assert schedule is not None
        return options.steps(schedule)

    every = {
        "vision": Stage(
            "vision", vision, lambda: train_vision(model.vision_model, options.vision, cache)
        ),
        "placing": Stage(
            "placing", vision, lambda: train_placing(model.vision_model, options.vision, cache)
        ),
        "language": Stage(
            f"{name}-language",
            {"language": model.language_model},
            lambda: train_language(model.language_model, encoder, lasting("language")),
        ),
        "qformer": Stage(
            recipe.shares,
            shared,
            lambda: bridge.train_qformer(
                pool, lasting("qformer"), 0, afresh="qformer" not in recipe.taken
            ),
        ),
        "bridge": Stage(
            f"{name}-bridge",
            everything,
            lambda: bridge.train_bridge(pool, lasting("bridge"), seed),
        ),
        "joint": Stage(
            f"{name}-joint",
            everything,
            lambda: bridge.train_jointly(pool, lasting("joint"), seed),
        ),
        "polish": Stage(
            f"{name}-polish",
            everything,
            lambda: bridge.train_polish(pool, lasting("polish"), seed),
        ),
    }
    return {stage: every[stage] for stage in recipe.stages if options.reaches(stage)}


def projector_of(model: Any, encoder: Encoder) -> Projector:
    """A model's way from image features to a visual prompt."""
    if isinstance(model, MiniGPT4):
        return model.projector
    plain = model.config.model_type == "blip-2"
    return PlainQFormer(model) if plain else InstructionQFormer(model, encoder)


def heads_of(model: Any) -> Heads:
    """New auxiliary heads for a model."""
    if isinstance(model, MiniGPT4):
        return ListHeads() if model.config.qformer else SceneHeads(tokens=model.config.tokens)
    return ListHeads() if model.config.model_type == "blip-2" else InstructionHeads()
