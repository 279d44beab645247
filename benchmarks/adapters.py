"""LoRA adapters that teach a demo to count to six: trained by peft, merged, and built.

Needs peft. For each adapter: right answers of 200 held-out images by the demo alone, by
transformers with peft, and by the build; and how many of the build's greedy texts are peft's.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints.training.adapters import TARGETS, Task, task_of, train_adapter, write_counting
from iblip.engines.evaluation.texts import reference_texts
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.source import ModelSource, adapters_from_words
from iblip.export.examples import read_examples
from iblip.export.progress import Silent
from iblip.export.verification.references import reference_of
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, VerificationOptions
from iblip.serving.parity.running import ParityOptions, parity_report

EXAMPLES = 200

ADAPTERS = {part: [part] for part in TARGETS} | {"both": list(TARGETS)}


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Figures by the parts that have LoRA."""
    return {name: _measure(checkpoint, scratch, name, parts) for name, parts in ADAPTERS.items()}


@cache
def _examples(task: Task, directory: Path) -> Path:
    write_counting(task, directory, EXAMPLES)
    return directory


@cache
def _right_alone(checkpoint: Path, directory: Path) -> float:
    """The share of examples that transformers answers right without an adapter."""
    examples = read_examples(directory)
    reference = reference_of(checkpoint_from_directory(checkpoint))
    texts = reference_texts(reference, examples, Silent(), "text")
    return sum(e.is_right(text) for e, text in zip(examples, texts, strict=True)) / len(examples)


def _measure(checkpoint: Path, scratch: Path, name: str, parts: list[str]) -> dict[str, Any]:
    task = task_of(parts)
    examples = _examples(task, scratch / f"examples-{task.answers[0]}")
    adapter = scratch / f"{checkpoint.name}-{name}"
    started = time.monotonic()
    train_adapter(checkpoint, adapter, parts)
    seconds = time.monotonic() - started
    source = ModelSource(model=str(checkpoint), adapters=adapters_from_words([adapter]))
    asked = VerificationOptions(examples=examples, limit=8)
    directory = build(
        BuildOptions(source=source, output=scratch / f"{adapter.name}-fp32", verification=asked)
    )
    stages = ("first_token", "text", "accuracy")
    options = ParityOptions(source=source, examples=examples, stages=stages)
    (report,) = parity_report([directory], Silent(), options).to_json()["builds"]
    accuracy, text = report["stages"]["accuracy"], report["stages"]["text"]
    return {
        "question": task.prompt,
        "examples": text["examples"],
        "base_right": _right_alone(checkpoint, examples),
        "peft_right": accuracy["reference_right"],
        "build_right": accuracy["right"],
        "same_text_as_peft": text["same_text"],
        "training_s": round(seconds),
    }
