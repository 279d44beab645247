"""MiniGPT-4 from transformers' own parts: it has no class for the whole.

A directory of it looks as a Hugging Face one would: `config.json` with a config a part, tensors by
the names that transformers gives to BLIP-2's. Prompts have the image inside, see `prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)

from .architecture import GRID, MERGED, QUERIES, plain_qformer_config, plain_vision_config
from .projectors import PatchMerge, PlainQFormer, Projector
from .prompts import Form

ARCHITECTURE = "MiniGPT4ForConditionalGeneration"


@dataclass(frozen=True)
class MiniGPT4Config:
    """Shapes of the parts, and how the model is asked.

    Attributes:
        qformer: None where neighbouring patches are merged instead.
        form: template and stop strings.
    """

    vision: Blip2VisionConfig
    qformer: Blip2QFormerConfig | None
    text: LlamaConfig
    form: Form

    @property
    def tokens(self) -> int:
        """Rows of a visual prompt."""
        return QUERIES if self.qformer else GRID * GRID // MERGED

    def as_json(self, dtype: str) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "architectures": [ARCHITECTURE],
            "dtype": dtype,
            "merged_patches": None if self.qformer else MERGED,
            "model_type": "minigpt4",
            "num_query_tokens": self.tokens,
            "prompt_template": self.form.template,
            "qformer_config": self.qformer and _plain(self.qformer),
            "stop": list(self.form.stop),
            "text_config": _plain(self.text),
            "vision_config": _plain(self.vision),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MiniGPT4Config:
        """What `config.json` holds, read back."""
        qformer = data["qformer_config"]
        return cls(
            Blip2VisionConfig(**data["vision_config"]),
            Blip2QFormerConfig(**qformer) if qformer else None,
            LlamaConfig(**data["text_config"]),
            Form(template=data["prompt_template"], stop=tuple(data["stop"])),
        )


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A part's config as it stands inside a whole one."""
    settings: dict[str, Any] = config.to_diff_dict()
    settings.pop("transformers_version", None)
    return settings


class MiniGPT4(nn.Module):
    """The parts under one roof; attributes are named as in transformers' BLIP-2."""

    query_tokens: nn.Parameter

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__()
        self.config = config
        self.vision_model = Blip2VisionModel(config.vision)
        width = config.vision.hidden_size * MERGED
        if config.qformer:
            width = config.qformer.hidden_size
            self.query_tokens = nn.Parameter(torch.randn(1, config.tokens, width))
            self.qformer = Blip2QFormerModel(config.qformer)
        self.language_projection = nn.Linear(width, config.text.hidden_size)
        self.language_model = LlamaForCausalLM(config.text)

    @property
    def projector(self) -> Projector:
        """How this model makes a visual prompt."""
        return PlainQFormer(self) if self.config.qformer else PatchMerge(self)

    @torch.no_grad()
    def generate(self, pixels: Tensor, before: Tensor, after: Tensor, **options: Any) -> Tensor:
        """Greedy answers to equally long prompts.

        Args:
            pixels: float32 `[batch, 3, height, width]`.
            before: ids ahead of the image, int64 `[n]`.
            after: ids behind it, int64 `[batch, m]`.
            options: for transformers' `generate`.

        Returns:
            Ids of the answers, int64 `[batch, length]`.
        """
        embeds = self.vision_model(pixel_values=pixels).last_hidden_state
        projector = self.projector
        visual_prompt = projector.visual_prompt(projector.readings(embeds, [""] * len(pixels)))
        embedding = self.language_model.get_input_embeddings()
        first = embedding(before).expand(len(pixels), -1, -1)
        whole = torch.cat([first, visual_prompt, embedding(after)], dim=1)
        language: Any = self.language_model
        ids: Tensor = language.generate(
            inputs_embeds=whole,
            attention_mask=torch.ones(whole.shape[:2], dtype=torch.int64),
            do_sample=False,
            **options,
        )
        return ids

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Write `config.json` and `model.safetensors`, rounded to `dtype`."""
        directory.mkdir(parents=True, exist_ok=True)
        name = str(dtype).removeprefix("torch.")
        config = json.dumps(self.config.as_json(name), indent=2, sort_keys=True)
        (directory / "config.json").write_text(config + "\n", encoding="utf-8")
        tensors = {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, directory: Path) -> MiniGPT4:
        """Read what `save` wrote, as float32."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        model = cls(MiniGPT4Config.from_json(config))
        tensors = load_file(directory / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return model.train(False)


def new_minigpt4(text: LlamaConfig, form: Form, *, qformer: bool) -> MiniGPT4:
    """A fresh model, with a Q-Former or with merged patches."""
    shape = plain_qformer_config() if qformer else None
    return MiniGPT4(MiniGPT4Config(plain_vision_config(), shape, text, form))


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    for end in stop:
        text = text.split(end)[0]
    return text
