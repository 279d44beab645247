"""Answers questions with a saved checkpoint, through transformers alone, in float32."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from .minigpt4 import ARCHITECTURE, MiniGPT4, cut

BATCH = 25
MAX_NEW_TOKENS = 80  # the longest held-out answer takes fewer than 60


@dataclass(frozen=True)
class Item:
    """One line of `examples.jsonl`, with its image's path resolved."""

    name: str
    image: Path
    kind: str
    prompt: str
    answer: str


class Answerer(ABC):
    """A checkpoint that answers questions about images."""

    def answer(self, items: Sequence[Item]) -> list[str]:
        """Greedy answers, whitespace stripped, in the order of the items.

        Only prompts that are equally long share a batch: transformers pads on the left of the text
        but behind the image tokens, and a decoder answers otherwise across that hole.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(self._lengths(item.prompt), []).append(index)
        texts: dict[int, str] = {}
        for group in groups.values():
            for start in range(0, len(group), BATCH):
                part = group[start : start + BATCH]
                texts.update(zip(part, self._batch([items[i] for i in part]), strict=True))
        return [texts[index] for index in range(len(items))]

    @abstractmethod
    def _lengths(self, prompt: str) -> tuple[int, ...]:
        """Tokens of the prompt, for each part that reads it."""

    @abstractmethod
    def _batch(self, items: Sequence[Item]) -> list[str]:
        """Answers to equally long prompts."""


CLASSES: dict[str, tuple[Any, Any]] = {
    "InstructBlipForConditionalGeneration": (
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    ),
    "Blip2ForConditionalGeneration": (Blip2ForConditionalGeneration, Blip2Processor),
}


class WholeAnswerer(Answerer):
    """InstructBLIP or BLIP-2, which transformers has classes for.

    Args:
        directory: the checkpoint.
        empty_instruction: whether InstructBLIP's Q-Former gets an empty text while the language
            model still reads the question; shows how much it makes of the instruction.
    """

    def __init__(self, directory: Path, *, empty_instruction: bool = False) -> None:
        model, processor = CLASSES[architecture_of(directory)]
        self.model = model.from_pretrained(directory, dtype=torch.float32).train(False)
        self.processor = processor.from_pretrained(directory)
        self.empty_instruction = empty_instruction

    @property
    def tokenizer(self) -> Any:
        """The language model's."""
        return self.processor.tokenizer

    @torch.no_grad()
    def _batch(self, items: Sequence[Item]) -> list[str]:
        images = [Image.open(item.image).convert("RGB") for item in items]
        prompts = [item.prompt for item in items]
        inputs = self.processor(images=images, text=prompts, return_tensors="pt")
        if self.empty_instruction:
            empty = self.processor.qformer_tokenizer([""] * len(items), return_tensors="pt")
            inputs["qformer_input_ids"] = empty["input_ids"]
            inputs["qformer_attention_mask"] = empty["attention_mask"]
        ids: torch.Tensor = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
        if self.model.config.use_decoder_only_language_model:
            ids = ids[:, inputs["input_ids"].shape[1] :]  # the prompt comes back in front
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _lengths(self, prompt: str) -> tuple[int, ...]:
        ids = self.processor(text=prompt)
        return tuple(len(ids[key][0]) for key in ("input_ids", "qformer_input_ids") if key in ids)


class MiniGPT4Answerer(Answerer):
    """MiniGPT-4, put together from transformers' parts.

    Args:
        directory: the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.model = MiniGPT4.load(directory)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.image_processor: Any = BlipImageProcessorPil.from_pretrained(directory)

    def _batch(self, items: Sequence[Item]) -> list[str]:
        form = self.model.config.form
        images = [Image.open(item.image).convert("RGB") for item in items]
        ids = self.model.generate(
            self.image_processor(images=images, return_tensors="pt")["pixel_values"],
            torch.tensor(self.tokenizer(form.before)["input_ids"]),
            torch.tensor([self._after(item.prompt) for item in items]),
            max_new_tokens=MAX_NEW_TOKENS,
            **({"stop_strings": list(form.stop), "tokenizer": self.tokenizer} if form.stop else {}),
        )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [cut(text, form.stop).strip() for text in texts]

    def _after(self, prompt: str) -> list[int]:
        after = self.model.config.form.after(prompt)
        ids: list[int] = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return ids

    def _lengths(self, prompt: str) -> tuple[int, ...]:
        return (len(self._after(prompt)),)


def architecture_of(directory: Path) -> str:
    """What `config.json` calls the model."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return str(config["architectures"][0])


def reads_instruction(directory: Path) -> bool:
    """Whether the checkpoint's Q-Former reads the question too."""
    return architecture_of(directory).startswith("InstructBlip")


def answerer_of(directory: Path, *, empty_instruction: bool = False) -> Answerer:
    """A checkpoint, ready to answer; see `WholeAnswerer` for `empty_instruction`.

    Raises:
        ValueError: an empty instruction is wanted of a Q-Former that reads none.
    """
    if empty_instruction and not reads_instruction(directory):
        raise ValueError(f"the Q-Former of {directory} reads no instruction, empty or not")
    if architecture_of(directory) == ARCHITECTURE:
        return MiniGPT4Answerer(directory)
    return WholeAnswerer(directory, empty_instruction=empty_instruction)
