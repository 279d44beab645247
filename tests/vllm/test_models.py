"""vLLM on models of its own accord: an OPT, and one model on several processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM

from engines.language_model.types import GenerationOptions, GenerationRequest
from engines.language_model.vllm.building import vllm_from_checkpoint
from engines.language_model.vllm.engine import VllmEngine
from engines.language_model.vllm.environment import VARIABLE, worker_environment
from engines.language_model.vllm.opening import engine_arguments
from engines.language_model.vllm.process import WORKER, WorkerProcess
from engines.language_model.vllm.settings import VllmSettings
from engines.pipeline import Pipeline
from engines.text import PromptTokenizer
from engines.verification import AGREEMENT
from export.checkpoint import Checkpoint, checkpoint_from_directory
from export.examples import Example
from export.images import pixels_from_image
from export.manifest import EngineRecord, LanguageModelFacts, Manifest
from export.progress import Silent
from export.weights import tensors_from_safetensors

pytestmark = pytest.mark.vllm

LENGTH = 15
OPT = OPTConfig(
    hidden_size=128,
    word_embed_proj_dim=128,
    ffn_dim=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=712,
    max_position_embeddings=256,
)


@pytest.fixture
def opt() -> OPTForCausalLM:
    """Random weights, wide apart: it says many things."""
    torch.manual_seed(0)
    model = OPTForCausalLM(OPT).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    return model


def checkpoint_of(model: OPTForCausalLM, directory: Path) -> Checkpoint:
    """A BLIP-2 in name only: its language model's weights, under the names they have there."""
    file = directory / "model.safetensors"
    tensors = {name: value for name, value in model.state_dict().items() if "lm_head" not in name}
    save_file({f"language_model.{name}": value for name, value in tensors.items()}, file)
    return Checkpoint(
        directory=directory,
        family="blip2",
        config=SimpleNamespace(text_config=OPT),
        tensors=tensors_from_safetensors(file),
    )


def test_an_opt_says_what_transformers_says(opt, vllm_build, vllm_python, tmp_path):
    record = vllm_from_checkpoint(
        checkpoint_of(opt, tmp_path),
        tmp_path,
        precision="fp32",
        settings=VllmSettings(),
        progress=Silent(),
    )
    manifest = Manifest.read(vllm_build)
    facts = replace(
        manifest.language_model,
        architecture="opt",
        max_length=OPT.max_position_embeddings,
        num_layers=OPT.num_hidden_layers,
    )
    arguments = engine_arguments(tmp_path, record, facts, sequences=8, positions=facts.max_length)
    start = partial(
        WorkerProcess,
        [str(vllm_python), "-I", str(WORKER)],
        worker_environment(os.environ),
        {**arguments, "cpu_threads": None},
    )
    prompts = PromptTokenizer.from_build(vllm_build, manifest)
    random = np.random.default_rng(0)
    visual = random.normal(size=(6, facts.num_query_tokens, facts.hidden_size)).astype(np.float32)
    options = GenerationOptions(min_new_tokens=LENGTH, max_new_tokens=LENGTH)
    with VllmEngine(start, prompts, facts, sequences=8, queue_limit=8) as engine:
        running = [
            engine.submit(GenerationRequest(prompt="What?", visual_prompt=one, options=options))
            for one in visual
        ]
        found = [one.result().token_ids for one in running]
    assert len(set(found)) > 1
    assert found == [_greedy(opt, one, prompts("What?"), facts) for one in visual]


def _greedy(
    model: OPTForCausalLM, visual: np.ndarray, ids: tuple[int, ...], facts: LanguageModelFacts
) -> tuple[int, ...]:
    text = model.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual)[None], text], dim=1)
    tokens = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        do_sample=False,
        min_new_tokens=LENGTH,
        max_new_tokens=LENGTH,
        eos_token_id=list(facts.eos_token_ids),
    )
    return tuple(tokens[0].tolist())


def test_two_processes_share_each_layer(vllm_build, vllm_python, reference, examples, monkeypatch):
    # Groups of layers cannot be tried here: vLLM's CPU build fails at the first request.
    monkeypatch.setenv(VARIABLE, str(vllm_python))
    manifest = Manifest.read(vllm_build)
    engine = manifest.components["language_model"].engine
    shared = replace(engine, details={**engine.details, "tensor_parallel": 2})
    found = _answers(vllm_build, _with_engine(manifest, shared), examples[:24])
    assert found == [reference.answer(e.image, e.prompt).token_ids for e in examples[:24]]


def test_half_precision_says_nearly_always_the_same(
    vllm_build, vllm_python, reference, checkpoints, examples, monkeypatch, tmp_path
):
    monkeypatch.setenv(VARIABLE, str(vllm_python))
    manifest = Manifest.read(vllm_build)
    half = vllm_from_checkpoint(
        checkpoint_from_directory(checkpoints / "instructblip-demo-vicuna"),
        tmp_path,
        precision="fp16",
        settings=VllmSettings(),
        progress=Silent(),
    )
    engine = replace(half, files={name: str(tmp_path / path) for name, path in half.files.items()})
    found = _answers(vllm_build, _with_engine(manifest, engine), examples[:100])
    wanted = [reference.answer(e.image, e.prompt).token_ids for e in examples[:100]]
    same = sum(one == other for one, other in zip(found, wanted, strict=True))
    assert same >= AGREEMENT["fp16"] * len(wanted)


def _with_engine(manifest: Manifest, engine: EngineRecord) -> Manifest:
    record = replace(manifest.components["language_model"], engine=engine)
    return replace(manifest, components={**manifest.components, "language_model": record})


def _answers(directory: Path, manifest: Manifest, examples: list[Example]) -> list[tuple[int, ...]]:
    with Pipeline(directory, manifest=manifest) as pipeline, ThreadPoolExecutor(8) as pool:

        def ask(example: Example) -> tuple[int, ...]:
            pixels = pixels_from_image(example.image, manifest.preprocessing)
            return pipeline.answer(pixels, example.prompt).token_ids

        return list(pool.map(ask, examples))
