"""`RECIPES`: what differs between the demo models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerBase

from .architecture import Vocabulary, llama_config, opt_config, t5_config
from .batches import CAPTIONED, INSTRUCTED, PLAIN, Diet
from .bridge import BRIDGE, JOINT, POLISH, QFORMER
from .language import SCHEDULE
from .loop import Schedule
from .parts import Text
from .prompts import FORMS, Form
from .text import train_llama_tokenizer, train_opt_tokenizer, train_t5_tokenizer

VICUNA, FLANT5 = "instructblip-demo-vicuna", "instructblip-demo-flant5"


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        directory: its name under `checkpoints`.
        family: see `parts.new_model`.
        tokenizer: makes the language model's.
        text_config: the language model's shape.
        decoder_only: whether an answer continues its prompt.
        form: how it is asked.
        diet: what it is asked in training.
        seed: of weights and batches.
        stages: which are run, in order, and for how long; None where the stage knows.
        taken: parts that come from the demo checkpoint named.
        shares: name in the cache of the Q-Former's first stage; models that name the same share it.
        examples: the held-out set whose prompts have its form.
        dtype: what the stored weights are rounded to.
    """

    directory: str
    family: str
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    text_config: Callable[[Vocabulary], Text]
    decoder_only: bool
    form: Form
    diet: Diet
    seed: int
    stages: Mapping[str, Schedule | None]
    taken: Mapping[str, str] = field(default_factory=dict)
    shares: str = "qformer"
    examples: str = "heldout"
    dtype: torch.dtype = torch.float32


ALL_STAGES: Mapping[str, Schedule | None] = {
    "vision": None,
    "placing": None,
    "language": SCHEDULE,
    "qformer": QFORMER,
    "bridge": BRIDGE,
    "joint": JOINT,
    "polish": POLISH,
}

# Without an instruction, the Q-Former must tell the whole scene, for whatever is asked then.
PLAIN_QFORMER = Schedule(steps=1200, batch=128, peak=1e-3, weight_decay=0.02)
PLAIN_BRIDGE = Schedule(steps=1000, batch=128, peak=1e-3, weight_decay=0.02)
MINIGPT4_BRIDGE = replace(PLAIN_BRIDGE, batch=96)  # its prompts are longer
SMALL_BRIDGE = Schedule(steps=1100, batch=64, peak=1.5e-3, weight_decay=0.02)

# As the originals share EVA's ViT-g, and MiniGPT-4 has BLIP-2's Q-Former.
_PLAIN = {"vision_model": VICUNA, "qformer": VICUNA}

RECIPES: Mapping[str, Recipe] = {
    "vicuna": Recipe(
        directory=VICUNA,
        family="instructblip",
        tokenizer=train_llama_tokenizer,
        text_config=llama_config,
        decoder_only=True,
        form=FORMS["plain"],
        diet=INSTRUCTED,
        seed=21,
        stages=ALL_STAGES,
    ),
    "flant5": Recipe(
        directory=FLANT5,
        family="instructblip",
        tokenizer=train_t5_tokenizer,
        text_config=t5_config,
        decoder_only=False,
        form=FORMS["plain"],
        diet=INSTRUCTED,
        seed=22,
        stages={**ALL_STAGES, "language": replace(SCHEDULE, steps=500)},
        dtype=torch.float16,
    ),
    "blip2-opt": Recipe(
        directory="blip2-demo-opt",
        family="blip2",
        tokenizer=train_opt_tokenizer,
        text_config=opt_config,
        decoder_only=True,
        form=FORMS["blip2-opt"],
        diet=CAPTIONED,
        seed=23,
        stages={
            "language": SCHEDULE,
            "qformer": PLAIN_QFORMER,
            "bridge": PLAIN_BRIDGE,
        },
        taken=_PLAIN,
        shares="qformer-plain",
        examples="heldout-blip2",
        dtype=torch.float16,
    ),
    "blip2-flant5": Recipe(
        directory="blip2-demo-flant5",
        family="blip2",
        tokenizer=train_t5_tokenizer,
        text_config=t5_config,
        decoder_only=False,
        form=FORMS["blip2-t5"],
        diet=CAPTIONED,
        seed=24,
        stages={"qformer": PLAIN_QFORMER, "bridge": SMALL_BRIDGE},
        taken={**_PLAIN, "language_model": FLANT5},
        shares="qformer-plain",
        examples="heldout-blip2",
        dtype=torch.float16,
    ),
    "minigpt4": Recipe(
        directory="minigpt4-demo",
        family="minigpt4",
        tokenizer=train_llama_tokenizer,
        text_config=llama_config,
        decoder_only=True,
        form=FORMS["minigpt4"],
        diet=PLAIN,
        seed=25,
        stages={"qformer": PLAIN_QFORMER, "bridge": MINIGPT4_BRIDGE},
        taken={**_PLAIN, "language_model": VICUNA},
        shares="qformer-plain",
        dtype=torch.float16,
    ),
    "minigpt4-llama2": Recipe(
        directory="minigpt4-demo-llama2",
        family="minigpt4-merge",
        tokenizer=train_llama_tokenizer,
        text_config=llama_config,
        decoder_only=True,
        form=FORMS["minigpt4-llama2"],
        diet=PLAIN,
        seed=26,
        stages={"bridge": SMALL_BRIDGE},
        taken={"vision_model": VICUNA, "language_model": VICUNA},
        dtype=torch.float16,
    ),
}
