"""Really exported graphs of small random models: cached decoding, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import InstructBlipForConditionalGeneration

from engines.language_model.graphs import SequenceModel, open_model
from engines.language_model.opening import open_engine
from engines.language_model.types import GenerationOptions, GenerationRequest
from engines.text import PromptTokenizer
from export.errors import BuildDirectoryError, EngineError
from export.manifest import Manifest

Build = Callable[..., Path]
IDS = (1, 40, 27, 12, 39, 5)
ANSWER = (30, 51, 9, 9, 20)


@pytest.fixture(params=["llama", "t5"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, random_build: Build) -> Iterator[SequenceModel]:
    directory = random_build(kind)
    opened = open_model(directory, Manifest.read(directory), threads=1)
    yield opened
    opened.close()


@pytest.fixture
def reference(kind: str, random_checkpoint: Build) -> Any:
    whole = InstructBlipForConditionalGeneration.from_pretrained(random_checkpoint(kind))
    return whole.eval().language_model


def visual(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 32)).astype(np.float32)


@torch.no_grad()
def recomputed(reference: Any, visual_prompt: np.ndarray, answer: tuple[int, ...]) -> np.ndarray:
    """Logits `[len(answer) + 1, vocab]` after each answer token, by transformers, with no cache."""
    embed = reference.get_input_embeddings()
    text = embed(torch.tensor([IDS]))
    embeds = torch.cat([torch.from_numpy(visual_prompt)[None], text], dim=1)
    if reference.config.is_encoder_decoder:
        start = reference.config.decoder_start_token_id
        ids = torch.tensor([[start, *answer]])
        out = reference(inputs_embeds=embeds, decoder_input_ids=ids, use_cache=False)
        return out.logits[0].numpy()
    if answer:
        embeds = torch.cat([embeds, embed(torch.tensor([answer]))], dim=1)
    logits = reference(inputs_embeds=embeds, use_cache=False).logits[0]
    return logits[-len(answer) - 1 :].numpy()


def test_cached_decoding_equals_full_recomputation(model: SequenceModel, reference: Any) -> None:
    wanted = recomputed(reference, visual(0), ANSWER)
    cache, logits = model.prefill(visual(0), IDS)
    found = [logits, *(model.step(cache, token) for token in ANSWER)]
    assert np.abs(np.stack(found) - wanted).max() < 1e-4
    assert len({int(row.argmax()) for row in wanted}) > 1  # else the test would see nothing


def test_sequences_side_by_side_do_not_touch_each_other(model: SequenceModel) -> None:
    def alone(seed: int) -> list[np.ndarray]:
        cache, logits = model.prefill(visual(seed), IDS[:seed])
        return [logits, *(model.step(cache, token) for token in ANSWER)]

    wanted = [alone(seed) for seed in (2, 3)]
    caches, firsts = zip(*(model.prefill(visual(seed), IDS[:seed]) for seed in (2, 3)), strict=True)
    found = [[first] for first in firsts]
    for token in ANSWER:
        for cache, rows in zip(caches, found, strict=True):
            rows.append(model.step(cache, token))
    for mine, theirs in zip(found, wanted, strict=True):
        assert (np.stack(mine) == np.stack(theirs)).all()


def test_the_model_sees_image_and_prompt(model: SequenceModel) -> None:
    first = model.prefill(visual(0), IDS)[1]
    assert not np.allclose(first, model.prefill(visual(1), IDS)[1], atol=1e-3)
    assert not np.allclose(first, model.prefill(visual(0), (*IDS[:-1], 60))[1], atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 8},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 1.3, "min_new_tokens": 12},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_generate(
    kind: str, random_build: Build, random_checkpoint: Build, options: dict[str, Any]
) -> None:
    whole = InstructBlipForConditionalGeneration.from_pretrained(random_checkpoint(kind)).eval()
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    engine = open_engine(directory, manifest, threads=1)
    prompts = PromptTokenizer.from_build(directory, manifest)
    lengths = set()
    for seed, prompt in enumerate(["What colour is the 3?", "It's red", "Describe the image."]):
        ids = prompts(prompt)
        image = [] if facts.is_encoder_decoder else [facts.image_token_id] * 4
        embeds = whole.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat([torch.from_numpy(visual(seed))[None], embeds], dim=1)
        inputs = {} if facts.is_encoder_decoder else {"input_ids": torch.tensor([[*image, *ids]])}
        wanted = whole.language_model.generate(
            **inputs,
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=list(facts.eos_token_ids),
            **options,
        )[0, len(inputs.get("input_ids", [[0]])[0]) :].tolist()
        request = GenerationRequest(
            prompt=prompt,
            visual_prompt=visual(seed),
            options=GenerationOptions(max_new_tokens=20, **options),
        )
        answer = engine.submit(request).result()
        assert list(answer.token_ids) == [t for t in wanted if t not in facts.eos_token_ids]
        assert answer.completion_tokens == len(wanted)
        lengths.add(tuple(wanted))
    assert len(lengths) > 1
    engine.close()


def test_half_precision_graphs_are_fed_and_read_in_their_own_dtypes(
    kind: str, random_build: Build
) -> None:
    logits = {}
    for precision in ("fp32", "fp16"):
        # Where another test wants the whole build too, that one is taken.
        parts = ("language_model",) if (kind, precision) == ("t5", "fp16") else ()
        directory = random_build(kind, precision, *parts)
        model = open_model(directory, Manifest.read(directory), threads=1)
        cache, first = model.prefill(visual(0), IDS)
        logits[precision] = np.concatenate([first, *(model.step(cache, t) for t in ANSWER)])
        cached = next(iter(cache.keys_values.values())).data_type()
        assert cached == ("tensor(float)" if precision == "fp32" else "tensor(float16)")
        model.close()
    full, half = (row.astype(np.float64) for row in logits.values())
    assert full @ half / np.linalg.norm(full) / np.linalg.norm(half) > 0.9999


def test_a_build_that_lacks_a_graph_is_refused(
    kind: str, random_build: Build, tmp_path: Path
) -> None:
    data = json.loads((random_build(kind) / "manifest.json").read_text())
    del data["components"]["language_model"]["graphs"]["decoder"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match="no language_model graph decoder"):
        open_model(tmp_path, Manifest.read(tmp_path))


def test_an_engine_of_another_kind_is_refused(random_build: Build, tmp_path: Path) -> None:
    data = json.loads((random_build("llama") / "manifest.json").read_text())
    data["components"]["language_model"]["engine"]["kind"] = "vllm"
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(EngineError, match="built for 'vllm'; this version runs onnxruntime"):
        open_engine(tmp_path, Manifest.read(tmp_path))
    del data["components"]["language_model"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match="has no language_model"):
        open_engine(tmp_path, Manifest.read(tmp_path))
