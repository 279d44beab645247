"""Builds of a `.pth` with LoRA inside answer as transformers with peft, which merges nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.source import ModelSource
from iblip.export.verification.loading import load_model
from iblip.export.verification.references import AssembledReference, WholeReference
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries
from tests.export.originals.conftest import Pair, training_state

RANK, ALPHA = 4, 6.0


def with_lora(language_model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """peft's own layers beside the weights, and what they are saved as."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    torch.manual_seed(5)
    wrapped = get_peft_model(language_model, settings)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
    saved = {n: t.detach().clone() for n, t in wrapped.state_dict().items() if "lora_" in n}
    assert len(saved) > 4
    return wrapped.base_model.model.eval(), saved


def check(found: Path, reference: Any, bare: Any) -> None:
    """Compares scores of first tokens, and answers; LoRA must change the scores."""
    manifest = Manifest.read(found)
    side, rng = manifest.preprocessing.height, np.random.default_rng(0)
    changed = 0.0
    with Pipeline(found) as pipeline:
        for prompt in ("which digit is red", "how many", "red"):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            images = [Image.fromarray(pixels)]
            options = GenerationOptions(max_new_tokens=8, logprobs=5)
            answer = pipeline.answer(pixels, prompt, options)
            (expected,) = reference.generate(images, [prompt], max_new_tokens=8)
            # Tokens: an original's text of bytes that are no character differs from transformers'.
            assert answer.token_ids == expected.token_ids
            scores, without = (
                model.first_logits(images, [prompt])[0].log_softmax(0)
                for model in (reference, bare)
            )
            assert answer.logprobs is not None
            for token, logprob in answer.logprobs[0].top:
                assert logprob == pytest.approx(float(scores[token]), abs=1e-3)
            changed = max(changed, float((scores - without).abs().max()))
    assert changed > 0.1


def test_a_lavis_file_with_pefts_lora(opt_pair: Pair, tmp_path: Path) -> None:
    quiet_libraries()
    checkpoint = checkpoint_from_directory(opt_pair.directory)
    model = load_model(checkpoint)
    model.language_model, saved = with_lora(model.language_model)
    file = tmp_path / "checkpoint_best.pth"
    torch.save(training_state({f"opt_model.{name}": t for name, t in saved.items()}), file)
    source = ModelSource(
        model="lavis:blip2_opt/pretrain_opt2.7b",
        parts={**opt_pair.parts, "base": opt_pair.parts["checkpoint"], "checkpoint": file},
        lora_alpha={"language_model": ALPHA},
    )
    found = build(BuildOptions(source=source, output=tmp_path / "build", precision="fp32"))
    assert Manifest.read(found).source["lora_alpha"] == {"language_model": ALPHA}
    check(found, WholeReference(checkpoint, model=model), WholeReference(checkpoint))


def test_a_file_of_minigpt4_that_says_its_alpha(
    minigpt4_pairs: Callable[[str], tuple[str, Pair]], tmp_path: Path
) -> None:
    quiet_libraries()
    name, pair = minigpt4_pairs("minigpt4")
    checkpoint = checkpoint_from_directory(pair.directory)
    reference = AssembledReference(checkpoint)
    reference.language_model, saved = with_lora(reference.language_model)
    config = {"model": {"lora_r": RANK, "lora_alpha": ALPHA}, "run": {}}
    state = training_state({f"llama_model.{name}": t for name, t in saved.items()})
    file = tmp_path / "checkpoint_3.pth"
    torch.save({**state, "config": config}, file)
    parts = {**pair.parts, "base": pair.parts["projection"], "projection": file}
    source = ModelSource(model=f"minigpt4:{name}", parts=parts)
    found = build(BuildOptions(source=source, output=tmp_path / "build", precision="fp32"))
    check(found, reference, AssembledReference(checkpoint))
