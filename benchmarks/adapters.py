"""LoRA adapters that teach a demo to count to six: trained by peft, merged, and built.

Needs peft. For each adapter: right answers of 200 held-out images by the demo alone, by
transformers with peft, and by the build; and how many of the build's greedy texts are peft's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from checkpoints.training.adapters import TARGETS, train_adapter, write_counting
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
    counting = scratch / "counting"
    if not counting.exists():
        write_counting(counting, EXAMPLES)
    examples = read_examples(counting)
    reference = reference_of(checkpoint_from_directory(checkpoint))
    base = reference_texts(reference, examples, Silent(), "text")
    alone = sum(e.is_right(text) for e, text in zip(examples, base, strict=True))
    return {
        name: {"base_right": alone / EXAMPLES, **_measure(checkpoint, scratch, name, parts)}
        for name, parts in ADAPTERS.items()
    }


def _measure(checkpoint: Path, scratch: Path, name: str, parts: list[str]) -> dict[str, Any]:
    adapter = scratch / f"{checkpoint.name}-{name}"
    started = time.monotonic()
    train_adapter(checkpoint, adapter, parts)
    seconds = time.monotonic() - started
    source = ModelSource(model=str(checkpoint), adapters=adapters_from_words([adapter]))
    asked = VerificationOptions(examples=scratch / "counting", limit=8)
    directory = build(
        BuildOptions(source=source, output=scratch / f"{adapter.name}-fp32", verification=asked)
    )
    stages = ("first_token", "text", "accuracy")
    options = ParityOptions(source=source, examples=scratch / "counting", stages=stages)
    (report,) = parity_report([directory], Silent(), options).to_json()["builds"]
    accuracy, text = report["stages"]["accuracy"], report["stages"]["text"]
    return {
        "examples": text["examples"],
        "peft_right": accuracy["reference_right"],
        "build_right": accuracy["right"],
        "same_text_as_peft": text["same_text"],
        "training_s": round(seconds),
    }
