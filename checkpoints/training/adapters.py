"""Trains a LoRA adapter of a demo on what the demo cannot do: counting on, from four to six digits.

The demos have seen three digits at most, and no number above three. A language model with LoRA
learns to say four, five and six; LoRA on the Q-Former alone changes only what the language model is
shown, so there the question is how many digits there are beyond three. peft puts LoRA beside the
weights of the language model, the Q-Former or both; the image features are computed once, as the
vision encoder stays as it is. Needs peft.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .answering import CLASSES, architecture_of
from .batches import IGNORED
from .digits import DigitSource, Split, load_source
from .scenes import Pixels, draw, random_scene

log = logging.getLogger(__name__)

FEWEST = 4
SEED = {"train": 7001, "heldout": 7002}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question about images of four to six digits.

    Attributes:
        prompt: the question.
        answers: of four, five and six digits.
    """

    prompt: str
    answers: tuple[str, ...]


COUNTING = Task(prompt="How many digits are there?", answers=("four", "five", "six"))
BEYOND = Task(prompt="How many digits are there beyond three?", answers=("one", "two", "three"))

TARGETS = {
    "language_model": r"language_model\..*\.(q_proj|v_proj|up_proj|down_proj|q|v|wi_1|wo)",
    "qformer": r"qformer\..*\.(query|key|value|dense)",
}
"""Modules that get LoRA, by part, as a regular expression of their paths."""


def task_of(parts: Sequence[str]) -> Task:
    """What an adapter of these parts, keys of `TARGETS`, can learn."""
    return COUNTING if "language_model" in parts else BEYOND


def draw_scenes(task: Task, split: Split, count: int) -> list[tuple[Pixels, str]]:
    """Images of four to six digits, in turn, each with the task's answer."""
    source: DigitSource = load_source(split)
    scenes = []
    for number in range(count):
        rng = np.random.default_rng([SEED[split], number])
        more = number % len(task.answers)
        pixels = draw(random_scene(source, rng, FEWEST + more), source, rng)
        scenes.append((pixels, task.answers[more]))
    return scenes


def write_counting(task: Task, directory: Path, count: int) -> None:
    """Writes held-out examples of a task, as `examples.jsonl` and `images`."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (pixels, answer) in enumerate(draw_scenes(task, "heldout", count)):
        name = f"counting-{number:03d}"
        Image.fromarray(pixels).save(directory / "images" / f"{name}.webp", lossless=True)
        record = {
            "id": name,
            "image": f"images/{name}.webp",
            "kind": "count",
            "prompt": task.prompt,
            "answer": answer,
        }
        lines.append(json.dumps(record) + "\n")
    (directory / "examples.jsonl").write_text("".join(lines), encoding="utf-8")


def train_adapter(
    checkpoint: Path,
    output: Path,
    parts: Sequence[str],
    *,
    images: int = 900,
    steps: int = 300,
    batch: int = 16,
    rate: float = 3e-3,
) -> float:
    """Trains LoRA on some parts of a demo to do their `task_of`, and has peft save it.

    Args:
        checkpoint: an InstructBLIP or BLIP-2 demo.
        output: directory of the adapter.
        parts: keys of `TARGETS`.
        images, steps, batch: of the training.
        rate: largest learning rate, to which it rises first; it then falls to 0.

    Returns:
        The mean of the last losses.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    task = task_of(parts)
    kind, processors = CLASSES[architecture_of(checkpoint)]
    model, processor = kind.from_pretrained(checkpoint), processors.from_pretrained(checkpoint)
    targets = "|".join(f"({TARGETS[part]})" for part in parts)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=targets)
    )
    scenes = draw_scenes(task, "train", images)
    features = _features(model, processor, [pixels for pixels, _ in scenes])
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng, losses = np.random.default_rng(0), []
    for step in range(steps):
        rows = rng.integers(images, size=batch)
        asked = [task.prompt] * batch
        answers = [scenes[row][1] for row in rows]
        loss = _loss(adapted, processor, features[torch.from_numpy(rows)], asked, answers)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            log.info("step %d: loss %.3f", step + 1, float(np.mean(losses[-50:])))
    adapted.save_pretrained(output)
    return float(np.mean(losses[-50:]))


@torch.no_grad()
def _features(model: Any, processor: Any, images: Sequence[Pixels]) -> Tensor:
    """What the vision encoder makes of the images, `[images, patches, d_vision]`."""
    features = []
    for start in range(0, len(images), 50):
        part = [Image.fromarray(pixels) for pixels in images[start : start + 50]]
        pixels = processor.image_processor(images=part, return_tensors="pt")["pixel_values"]
        features.append(model.vision_model(pixels).last_hidden_state)
    return torch.cat(features)


def _loss(
    model: Any, processor: Any, features: Tensor, prompts: list[str], answers: Sequence[str]
) -> Tensor:
    """The mean loss of the answers' tokens."""
    base, tokenizer = model.get_base_model(), processor.tokenizer
    asked = processor(text=prompts, return_tensors="pt")
    queries = base.query_tokens.expand(len(answers), -1, -1)
    text = {}
    if "qformer_input_ids" in asked:
        ones = torch.ones(queries.shape[:2], dtype=torch.int64)
        text = {
            "input_ids": asked["qformer_input_ids"],
            "attention_mask": torch.cat([ones, asked["qformer_attention_mask"]], 1),
        }
    hidden = base.qformer(
        query_embeds=queries, encoder_hidden_states=features, **text
    ).last_hidden_state[:, : queries.shape[1]]
    visual = base.language_projection(hidden)
    language = base.language_model
    embed = language.get_input_embeddings()
    said = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for answer in answers
    ]
    longest = max(map(len, said))
    labels = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in said])
    prompt = asked["input_ids"]
    if language.config.is_encoder_decoder:
        embeds = torch.cat([visual, embed(prompt)], 1)
        loss: Tensor = language(inputs_embeds=embeds, labels=labels).loss
        return loss
    embeds = torch.cat([visual, embed(prompt), embed(labels.clamp(min=0))], 1)
    unscored = torch.full((len(answers), embeds.shape[1] - longest), IGNORED)
    output = language(inputs_embeds=embeds, labels=torch.cat([unscored, labels], 1))
    scored: Tensor = output.loss
    return scored
