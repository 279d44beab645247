"""Answers "as the original" against LAVIS's and transformers' own calls, over held-out examples.

The reference is written from transformers' modules in LAVIS's way: the Q-Former's text cut on the
left at 128 tokens, the language model's `generate` given embeddings and no ids, ids of 0 made 2.
LAVIS's lengths count a start token that transformers 5 does not have: they are one less here. Beams
are scored as in transformers 5; the older scores have a recording of transformers 4.33 to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.builds import build
from iblip.engines.language_model.presets import HF, LAVIS, RANKING, preset
from iblip.engines.pipeline import Pipeline
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.export.verification.loading import load_model

GENERATE: Mapping[str, Any] = {"num_beams": 5, "min_length": 1, "repetition_penalty": 1.5}
"""Of LAVIS's `generate`, which `predict_answers` calls with another length."""

LENGTHS: Mapping[tuple[str, str], tuple[int, float]] = {
    ("llama", "generate"): (256 - 1, 1.0),
    ("llama", "predict_answers"): (10 - 1, 0.0),
    ("t5", "generate"): (256, 1.0),
    ("t5", "predict_answers"): (10, -1.0),
}
"""By language model and call: most tokens, and the penalty of length."""

CANDIDATES = ("red", "yellow", "a 7", "the 7 is blue", "3", "There are two digits.", "10")
"""Of several lengths; some begin alike."""


class Original:
    """An InstructBLIP checkpoint in transformers, float32, asked as the originals ask.

    Args:
        directory: of the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        checkpoint = checkpoint_from_directory(directory)
        self._model: Any = load_model(checkpoint)
        self._processor: Any = checkpoint.processor
        self.is_llama = checkpoint.config.use_decoder_only_language_model

    @property
    def language_model(self) -> str:
        """`llama` or `t5`."""
        return "llama" if self.is_llama else "t5"

    def lavis(self, example: Example, call: str) -> str:
        """The text of LAVIS's `generate` or `predict_answers`."""
        tokens, length_penalty = LENGTHS[self.language_model, call]
        embeds = self.prompt(example)
        ids = self._model.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=tokens,
            length_penalty=length_penalty,
            **GENERATE,
        )
        if not self.is_llama:
            return self._decode(ids)
        ids[ids == 0] = 2
        return self._decode(ids).strip()

    def losses(self, example: Example, candidates: Sequence[str]) -> list[float]:
        """What LAVIS's `predict_class` sorts candidates by."""
        return [self._loss(self.prompt(example), candidate) for candidate in candidates]

    def hf(self, example: Example) -> str:
        """The text of transformers' own `generate`, with nothing said."""
        inputs = self._processor(
            images=Image.open(example.image), text=example.prompt, return_tensors="pt"
        )
        return self._decode(self._model.generate(**inputs))

    @torch.no_grad()
    def prompt(self, example: Example) -> torch.Tensor:
        """What the language model reads, `[1, positions, d_llm]`."""
        tokenizer = self._processor.qformer_tokenizer
        tokenizer.truncation_side = "left"
        text = tokenizer([example.prompt], truncation=True, max_length=128, return_tensors="pt")
        pixels = self._processor.image_processor(Image.open(example.image), return_tensors="pt")
        image = self._model.get_image_features(
            pixels["pixel_values"],
            qformer_input_ids=text["input_ids"],
            qformer_attention_mask=text["attention_mask"],
            return_dict=True,
        ).pooler_output
        ids = self._processor.tokenizer([example.prompt], return_tensors="pt")["input_ids"]
        return torch.cat([image, self._model.get_input_embeddings()(ids)], dim=1)

    @torch.no_grad()
    def _loss(self, embeds: torch.Tensor, candidate: str) -> float:
        ids = self._processor.tokenizer([candidate], return_tensors="pt")["input_ids"]
        model = self._model.language_model
        if not self.is_llama:  # the closing token counts, and losses are summed
            logits = model(inputs_embeds=embeds, labels=ids).logits[0]
            return float(torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum"))
        ids = ids[:, 1:]  # without the token that begins a text
        whole = torch.cat([embeds, self._model.get_input_embeddings()(ids)], dim=1)
        logits = model(inputs_embeds=whole).logits[0, embeds.shape[1] - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum"))

    def _decode(self, ids: torch.Tensor) -> str:
        (text,) = self._processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return str(text)


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """How many of all examples are answered alike, by call; and how the others differ."""
    original = Original(checkpoint)
    examples = read_examples(checkpoint / "examples")
    with Pipeline(build(checkpoint, scratch)) as pipeline:
        return compare(pipeline, original, examples)


def compare(
    pipeline: Pipeline, original: Original, examples: Sequence[Example]
) -> dict[str, dict[str, Any]]:
    """Asks both the same, every call.

    Args:
        pipeline: the build.
        original: the checkpoint it was built from.
        examples: what is asked.
    """
    calls: dict[str, tuple[str, str, Callable[[Example], str]]] = {
        "lavis generate": (LAVIS, "generate", lambda e: original.lavis(e, "generate")),
        "lavis predict_answers": (
            LAVIS,
            "predict_answers",
            lambda e: original.lavis(e, "predict_answers"),
        ),
        "hf generate": (HF, "generate", original.hf),
    }
    figures = {
        name: _texts(pipeline, compat, call, examples, reference)
        for name, (compat, call, reference) in calls.items()
    }
    return {**figures, "lavis predict_class": _ranks(pipeline, original, examples)}


def _texts(
    pipeline: Pipeline,
    compat: str,
    call: str,
    examples: Sequence[Example],
    reference: Callable[[Example], str],
) -> dict[str, Any]:
    manifest = pipeline.manifest
    architecture = manifest.language_model.architecture
    original_preset = preset(compat, family=manifest.family, language_model=architecture, call=call)
    options = original_preset.with_options({"beam_scorer": "v5"})
    different = []
    for example in examples:
        pixels = pixels_from_image(example.image, manifest.preprocessing)
        text = original_preset.finished(pipeline.answer(pixels, example.prompt, options).text)
        expected = reference(example)
        if text != expected:
            different.append({"example": example.name, "text": text, "reference": expected})
    return {
        "examples": len(examples),
        "same_text": len(examples) - len(different),
        "different": different,
    }


def _ranks(pipeline: Pipeline, original: Original, examples: Sequence[Example]) -> dict[str, Any]:
    manifest = pipeline.manifest
    architecture = manifest.language_model.architecture
    original_preset = preset(
        LAVIS, family=manifest.family, language_model=architecture, call=RANKING
    )
    options = original_preset.with_options({"candidates": list(CANDIDATES)})
    same, apart = 0, 0.0
    for example in examples:
        pixels = pixels_from_image(example.image, manifest.preprocessing)
        ranking = pipeline.answer(pixels, example.prompt, options).ranking
        losses = original.losses(example, CANDIDATES)
        same += [candidate.index for candidate in ranking] == np.argsort(
            losses, kind="stable"
        ).tolist()
        apart = max(apart, *(abs(each.logprob + losses[each.index]) for each in ranking))
    return {"examples": len(examples), "same_order": same, "largest_difference_of_losses": apart}
