"""Answers the held-out questions with a saved checkpoint, through transformers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

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


@dataclass(frozen=True)
class Evaluation:
    """Exact matches of whitespace-stripped greedy answers.

    Attributes:
        kinds: per kind of question, how many were right and how many asked.
        wrong: what was asked, wanted and said wherever that differed.
    """

    kinds: dict[str, tuple[int, int]]
    wrong: list[dict[str, str]]

    @property
    def right(self) -> int:
        """How many answers matched."""
        return sum(right for right, _ in self.kinds.values())

    @property
    def asked(self) -> int:
        """How many questions there were."""
        return sum(asked for _, asked in self.kinds.values())

    def as_table(self) -> str:
        """A Markdown table with a row a kind."""
        rows = [*self.kinds.items(), ("**all**", (self.right, self.asked))]
        lines = [
            f"| {kind} | {asked} | {right} | {100 * right / asked:.1f} % |"
            for kind, (right, asked) in rows
        ]
        return "\n".join(["| kind | asked | right | exact match |", "|---|--:|--:|--:|", *lines])

    def as_json(self) -> str:
        """The same figures and every wrong answer, for other programs."""
        return json.dumps(
            {
                "exact_match": self.right / self.asked,
                "asked": self.asked,
                "right": self.right,
                "kinds": {k: {"right": r, "asked": a} for k, (r, a) in self.kinds.items()},
                "wrong": self.wrong,
            },
            indent=2,
        )


def read_items(examples: Path) -> list[Item]:
    """Read `examples.jsonl` from a directory."""
    lines = (examples / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        Item(r["id"], examples / r["image"], r["kind"], r["prompt"], r["answer"]) for r in records
    ]


class Answerer:
    """A checkpoint that answers questions about pictures.

    Args:
        directory: the checkpoint.
        empty_instruction: whether the Q-Former gets an empty text while the language model still
            reads the question; shows how much the Q-Former makes of the instruction.
    """

    def __init__(self, directory: Path, *, empty_instruction: bool = False) -> None:
        self.model = InstructBlipForConditionalGeneration.from_pretrained(directory)
        self.model.train(False)
        self.processor: Any = InstructBlipProcessor.from_pretrained(directory)
        self.empty_instruction = empty_instruction

    def answer(self, items: Sequence[Item]) -> list[str]:
        """Greedy answers, whitespace stripped, in the order of the items.

        Only prompts that are equally long share a batch: transformers pads on the left of the text
        but behind the image tokens, and a decoder answers otherwise across that hole.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(self._lengths(item.prompt), []).append(index)
        texts: dict[int, str] = {}
        for group in groups.values():
            for start in range(0, len(group), BATCH):
                part = group[start : start + BATCH]
                texts.update(zip(part, self._batch([items[i] for i in part]), strict=True))
        return [texts[index] for index in range(len(items))]

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

    def _lengths(self, prompt: str) -> tuple[int, int]:
        """Tokens of the prompt, for the language model and for the Q-Former."""
        ids = self.processor(text=prompt)
        return len(ids["input_ids"][0]), len(ids["qformer_input_ids"][0])


def evaluate(
    directory: Path, *, empty_instruction: bool = False, limit: int | None = None
) -> Evaluation:
    """Ask a checkpoint the questions in its `examples` folder, all or the first `limit`."""
    items = read_items(directory / "examples")[:limit]
    answerer = Answerer(directory, empty_instruction=empty_instruction)
    kinds = {item.kind: (0, 0) for item in items}
    wrong = []
    for item, said in zip(items, answerer.answer(items), strict=True):
        right, asked = kinds[item.kind]
        match = said == item.answer.strip()
        kinds[item.kind] = (right + match, asked + 1)
        if not match:
            wrong.append(
                {"id": item.name, "prompt": item.prompt, "wanted": item.answer, "said": said}
            )
    return Evaluation(kinds, wrong)
