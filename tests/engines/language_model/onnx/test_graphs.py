"""Really exported graphs of small random models: cached decoding, against transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from iblip.engines.language_model.onnx.graph import ON_CPU, ON_GPU, Shapes
from iblip.engines.language_model.onnx.key_value_caches import DeviceCaches
from iblip.engines.language_model.onnx.opening import MODELS, open_graphs, open_model
from iblip.engines.language_model.onnx.slots import BatchModel, Slot
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.text.tokens import load_tokenizer
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import BuildDirectoryError, EngineError, InputError
from iblip.export.verification.loading import load_model

Build = Callable[..., Path]
IDS = (1, 40, 27, 12, 39, 5)
ANSWER = (30, 51, 9, 9, 20)


@pytest.fixture(params=["llama", "t5", "opt"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[ON_CPU, ON_GPU], ids=["shapes-vary", "shapes-repeat"])
def shapes(request: pytest.FixtureRequest) -> Shapes:
    """Of the runs: those of a CPU, and those of a GPU, here on the CPU's provider."""
    assert isinstance(request.param, Shapes)
    return request.param


@pytest.fixture(
    params=[(ON_CPU, CPU), (ON_GPU, CPU), (ON_CPU, None)],
    ids=["shapes-vary", "shapes-repeat", "openvino"],
)
def way(request: pytest.FixtureRequest) -> tuple[Shapes, Placement | None]:
    """Shapes of the runs, and ONNX Runtime's provider; `None` is OpenVINO."""
    shapes, placement = request.param
    if placement is None:
        pytest.importorskip("openvino")
    return shapes, placement


def opened(
    directory: Path, shapes: Shapes, placement: Placement | None = CPU, **options: Any
) -> Any:
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    graphs = open_graphs(directory, manifest, placement, threads=1)
    return MODELS[facts.is_encoder_decoder](graphs, facts, shapes=shapes, **options)


@pytest.fixture
def model(
    kind: str, way: tuple[Shapes, Placement | None], random_build: Build
) -> Iterator[BatchModel]:
    made = opened(random_build(kind), *way)
    made.warm_up()
    yield made
    made.close()


@pytest.fixture
def whole(kind: str, random_checkpoint: Build) -> Any:
    return load_model(checkpoint_from_directory(random_checkpoint(kind)))


@pytest.fixture
def reference(whole: Any) -> Any:
    return whole.language_model


def read(model: BatchModel, seed: int, ids: tuple[int, ...], piece: int = 100) -> tuple[Slot, Any]:
    """A prompt in a slot of its own, and the logits of the answer's first token."""
    slot = model.acquire()
    prompt = model.read(visual(seed), PromptIds(ids))
    logits = None
    while prompt.done < prompt.positions:
        logits = model.prefill({slot: prompt}, piece)[slot]
    return slot, model.step({slot: model.start_token})[0] if logits is None else logits


def visual(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 4, 32)).astype(np.float32)


@torch.no_grad()
def recomputed(reference: Any, visual_prompt: np.ndarray, answer: tuple[int, ...]) -> np.ndarray:
    """Logits `[len(answer) + 1, vocab]` after each answer token, by transformers, with no cache."""
    embed = reference.get_input_embeddings()
    text = embed(torch.tensor([IDS]))
    embeds = torch.cat([torch.from_numpy(visual_prompt), text], dim=1)
    if reference.config.is_encoder_decoder:
        start = reference.config.decoder_start_token_id
        ids = torch.tensor([[start, *answer]])
        out = reference(inputs_embeds=embeds, decoder_input_ids=ids, use_cache=False)
        return out.logits[0].numpy()
    if answer:
        embeds = torch.cat([embeds, embed(torch.tensor([answer]))], dim=1)
    logits = reference(inputs_embeds=embeds, use_cache=False).logits[0]
    return logits[-len(answer) - 1 :].numpy()


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_decoding_in_a_slot_equals_full_recomputation(
    model: BatchModel, reference: Any, piece: int
) -> None:
    wanted = recomputed(reference, visual(0), ANSWER)
    slot, logits = read(model, 0, IDS, piece)
    found = [logits, *(model.step({slot: token})[0] for token in ANSWER)]
    assert np.abs(np.stack(found) - wanted).max() < 1e-4
    assert len({int(row.argmax()) for row in wanted}) > 1  # else the test would see nothing


def test_sequences_of_any_length_step_together(model: BatchModel, reference: Any) -> None:
    """They join and leave, one is only half read, and one is forked from another."""
    found: dict[Slot, list[np.ndarray]] = {}
    answers: dict[Slot, list[int]] = {}

    def add(seed: int) -> Slot:
        slot, logits = read(model, seed, IDS)
        found[slot], answers[slot] = [logits], []
        return slot

    def step(tokens: dict[Slot, int]) -> None:
        for slot, logits in zip(tokens, model.step(tokens), strict=True):
            found[slot].append(logits)
            answers[slot].append(tokens[slot])

    first, second = add(0), add(1)
    step({first: 30, second: 9})
    third = add(2)
    step({third: 7, first: 51, second: 9})
    half, prompt = model.acquire(), model.read(visual(3), PromptIds(IDS))
    model.prefill({half: prompt}, 4)
    model.release(second)  # so that the last moves into its row
    step({first: 9, third: 20})
    logits = model.prefill({half: prompt}, 100)[half]
    logits = model.step({half: model.start_token})[0] if logits is None else logits
    found[half], answers[half] = [logits], []
    fork = model.acquire()
    model.fork({fork: first})
    found[fork], answers[fork] = found[first].copy(), answers[first].copy()
    step({fork: 12, half: 5, first: 9, third: 30})
    model.fork({fork: first})  # back to what they share
    found[fork], answers[fork] = found[first].copy(), answers[first].copy()
    step({fork: 13, first: 14})
    step({fork: 20, third: 8})
    for seed, slot in enumerate((first, second, third, half)):
        wanted = recomputed(reference, visual(seed), tuple(answers[slot]))
        assert np.abs(np.stack(found[slot]) - wanted).max() < 1e-4
    wanted = recomputed(reference, visual(0), tuple(answers[fork]))
    assert answers[fork] == [30, 51, 9, 9, 13, 20]
    assert np.abs(np.stack(found[fork]) - wanted).max() < 1e-4


def test_the_caches_stay_where_they_are(model: BatchModel) -> None:
    places = {name: buffer.ctypes.data for name, buffer in model.caches.buffers.items()}
    slot, _ = read(model, 0, IDS)
    for token in ANSWER:
        before = {name: buffer[0].copy() for name, buffer in model.caches.buffers.items()}
        model.step({slot: token})
        for name, buffer in model.caches.buffers.items():
            changed = np.flatnonzero((buffer[0] != before[name]).any(axis=(0, 2)))
            wanted = [slot.length - 1] if name.startswith("past") else []
            assert changed.tolist() == wanted
    assert places == {name: buffer.ctypes.data for name, buffer in model.caches.buffers.items()}


def test_slots_in_a_devices_memory_hold_the_same(
    kind: str, random_build: Build, host_device: Any, shapes: Shapes
) -> None:
    def on_device(specs: Any, shape: Any) -> DeviceCaches:
        return DeviceCaches(specs, shape, host_device, 0, memory="cpu")

    model = opened(random_build(kind), shapes)
    other = opened(random_build(kind), shapes, slots=8, make_caches=on_device)
    found = [_life_of_slots(either) for either in (model, other)]
    assert (found[0] == found[1]).all()
    assert np.ptp(found[0]) > 0
    other.close()
    assert not host_device.memory


def test_no_nan_is_left_for_the_next_sequence(model: BatchModel) -> None:
    """Attention on CUDA multiplies by zero what it does not see; a NaN stays one."""
    first, _ = read(model, 0, IDS)
    spoiled = model.acquire()
    prompt = model.read(np.full_like(visual(1), np.nan), PromptIds(IDS))
    while prompt.done < prompt.positions:
        model.prefill({spoiled: prompt}, 100)
    assert np.isnan(model.step({spoiled: ANSWER[0]})).all()
    model.fork({first: spoiled})
    for slot in (first, spoiled):
        model.release(slot)
    assert not any(np.isnan(buffer).any() for buffer in model.caches.buffers.values())


def test_the_bound_of_lengths_changes_no_bit(kind: str, random_build: Build) -> None:
    """A captured CUDA graph keeps the capacity as the bound; rows' own lengths are exact."""
    exact, bounded = (opened(random_build(kind), shapes) for shapes in (ON_CPU, ON_GPU))
    for one in (exact, bounded):
        for _ in range(3):
            one.acquire()
    live = exact._live  # the same sequences, read once, in both models' slots
    for seed, slot in enumerate(live):
        prompt = exact.read(visual(seed), PromptIds(IDS[seed:]))
        while prompt.done < prompt.positions:
            exact.prefill({slot: prompt}, 3)
    for name, buffer in exact.caches.buffers.items():
        bounded.caches.buffers[name][:] = buffer
    for slot, other in zip(live, bounded._live, strict=True):
        other.length, other.source_length = slot.length, slot.source_length
    for count in (3, 2, 1, 3):
        for token in ANSWER:
            logits = exact.step(dict.fromkeys(live[:count], token))
            same = bounded.step(dict.fromkeys(bounded._live[:count], token))
            assert (logits == same).all()
    for name, buffer in exact.caches.buffers.items():
        assert (bounded.caches.buffers[name] == buffer).all()
    for one in (exact, bounded):
        one.close()


@pytest.mark.parametrize("kind", ["llama", "opt"], indirect=True)
def test_short_prompts_are_read_together(
    kind: str, random_build: Build, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iblip.engines.language_model.onnx.graph.SMALLEST_PIECE", 16)
    model = opened(random_build(kind), ON_GPU, slots=6)
    slots = [model.acquire() for _ in range(6)]
    prompts = {slot: model.read(visual(i), PromptIds(IDS)) for i, slot in enumerate(slots)}
    found, runs = {}, []
    while left := {slot: prompt for slot, prompt in prompts.items() if not prompt.done}:
        read = model.prefill(left, model.piece)
        runs.append(len(read))
        found |= read
    assert runs == [4, 2]  # powers of two, which repeat; 64 positions hold four of 16
    found = {slot: [logits] for slot, logits in found.items()}
    for token in ANSWER:
        for slot, logits in zip(slots, model.step(dict.fromkeys(slots, token)), strict=True):
            found[slot].append(logits)
    for seed, slot in enumerate(slots):
        wanted = recomputed(reference, visual(seed), ANSWER)
        assert np.abs(np.stack(found[slot]) - wanted).max() < 1e-4
    model.close()


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_what_does_not_fit_beside_a_prompt_is_read_later(kind: str, random_build: Build) -> None:
    model = opened(random_build(kind), ON_GPU, slots=4)
    first, begun, last = (model.acquire() for _ in range(3))
    prompts = {slot: model.read(visual(0), PromptIds(IDS)) for slot in (first, begun, last)}
    model.prefill({begun: prompts[begun]}, 4)
    assert list(model.prefill({first: prompts[first], last: prompts[last]}, 64)) == [first]
    assert list(model.prefill({begun: prompts[begun], last: prompts[last]}, 64)) == [begun]
    assert list(model.prefill({last: prompts[last]}, 64)) == [last]
    model.close()


def _life_of_slots(model: BatchModel) -> np.ndarray:
    """Logits of sequences that join, fork and leave."""
    first, second = (read(model, seed, IDS, 3)[0] for seed in (0, 1))
    logits = [model.step({first: 30, second: 9})]
    fork = model.acquire()
    model.fork({fork: second})
    logits.append(model.step({fork: 12, second: 5, first: 9}))
    model.release(first)
    logits += [model.step({fork: token, second: token}) for token in ANSWER]
    return np.concatenate(logits)


def test_the_model_sees_image_and_prompt(model: BatchModel) -> None:
    first = read(model, 0, IDS)[1]
    assert not np.allclose(first, read(model, 1, IDS)[1], atol=1e-3)
    assert not np.allclose(first, read(model, 0, (*IDS[:-1], 60))[1], atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 8},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 1.3, "min_new_tokens": 12},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 5},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": -1.5, "early_stopping": True},
        {"num_beams": 5, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 2, "repetition_penalty": 1.4, "min_new_tokens": 4},
        {"num_beams": 5, "no_repeat_ngram_size": 2, "early_stopping": True},
    ],
    ids=str,
)
def test_tokens_are_those_of_generate(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    engine = open_engine(directory, manifest, threads=1)
    prompts = PromptTokenizer.from_build(directory, manifest)
    lengths = set()
    for seed, prompt in enumerate(["What colour is the 3?", "It's red", "Describe the image."]):
        ids = prompts(prompt).ids
        image = [] if facts.is_encoder_decoder else [facts.image_token_id] * 4
        embeds = whole.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat([torch.from_numpy(visual(seed)), embeds], dim=1)
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


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.6, "min_new_tokens": 8}, {"num_beams": 4}], ids=str
)
def test_images_may_stand_anywhere_in_a_prompt(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    directory = random_build(kind)
    built = Manifest.read(directory)
    text = replace(
        built.text, images="places", prompt_template="Look: <Img>{image}</Img> {prompt}!"
    )
    limits = replace(built.limits, images=2)
    manifest, facts = replace(built, text=text, limits=limits), built.language_model
    tokenizer = load_tokenizer(directory / built.text.tokenizer)
    pictures = np.concatenate([visual(seed) for seed in range(2)])  # [2, queries, hidden]

    embed, parts, ids = whole.get_input_embeddings(), [], []
    for index, piece in enumerate(["Look: the ", " is red, the", " is it?!"]):
        if index:
            parts.append(torch.from_numpy(pictures[index - 1]))
            ids += [facts.image_token_id] * 4
        said = tokenizer.encode(piece, add_special_tokens=index == 0).ids
        parts.append(embed(torch.tensor(said, dtype=torch.int64)))
        ids += said
    embeds = torch.cat(parts)[None]
    inputs = {} if facts.is_encoder_decoder else {"input_ids": torch.tensor([ids])}
    wanted = whole.language_model.generate(
        **inputs,
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=list(facts.eos_token_ids),
        **options,
    )[0, len(ids) if inputs else 1 :].tolist()  # behind the prompt, or the start token
    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        answer = engine.submit(
            GenerationRequest(
                prompt="the <ImageHere> is red, the<ImageHere> is it?",
                visual_prompt=pictures,
                options=GenerationOptions(max_new_tokens=12, **options),
            )
        ).result()
    assert answer.prompt_tokens == len(ids)
    assert list(answer.token_ids) == [t for t in wanted if t not in facts.eos_token_ids]


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_stop_string_ends_a_beam_as_in_transformers(
    kind: str, random_build: Build, whole: Any
) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer(directory / manifest.text.tokenizer)
    )
    ids = tokenizer("What is it?").input_ids
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    facts = manifest.language_model
    asked = {"num_beams": 4, "max_new_tokens": 16, "length_penalty": 0.5}

    def reference(**stops: Any) -> str:
        made = whole.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            eos_token_id=list(facts.eos_token_ids),
            **asked,
            **stops,
        )[0].tolist()
        return str(tokenizer.decode(made, skip_special_tokens=True))

    stops = sorted({letter for letter in reference()[2:] if letter.isalpha()})[:3]
    assert stops
    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        for stop in stops:
            answer = engine.submit(
                GenerationRequest(
                    prompt="What is it?",
                    visual_prompt=visual(0),
                    options=GenerationOptions.from_mapping({**asked, "stop": [stop]}),
                )
            ).result()
            wanted = reference(stop_strings=[stop], tokenizer=tokenizer)
            assert answer.text == wanted.partition(stop)[0]


def test_an_answer_is_the_same_alone_and_in_a_crowd(kind: str, random_build: Build) -> None:
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    prompts = ["What colour is the 3?", "It's red", "Describe the image.", "How many digits?"]
    ways: list[dict[str, Any]] = [
        {"min_new_tokens": 9},
        {"temperature": 1.5, "seed": 3, "min_new_tokens": 6},
        {"num_beams": 3, "n": 2},
        {"temperature": 1.0, "seed": 4, "n": 3, "top_k": 20},
    ]
    requests = [
        GenerationRequest(
            prompt=prompts[i % 4],
            visual_prompt=visual(i),
            options=GenerationOptions(max_new_tokens=4 + i % 7 + 6, **ways[i % 3 + (i % 5 == 0)]),
        )
        for i in range(16)
    ]

    def said(answer: Any) -> list[tuple[int, ...]]:
        return [completion.token_ids for completion in (answer, *answer.others)]

    with contextlib.closing(open_engine(directory, manifest, threads=1)) as engine:
        alone = [said(engine.submit(request).result()) for request in requests]
    with contextlib.closing(
        open_engine(directory, manifest, threads=1, limits=EngineLimits(slots=16))
    ) as engine:
        crowd: list[Any] = []
        for request in requests:  # they join while others are already half said
            crowd.append(engine.submit(request))
            next(iter(crowd[len(crowd) // 2]))
        assert [said(generation.result()) for generation in crowd] == alone
    assert len({tokens for answer in alone for tokens in answer}) > 16


def test_half_precision_graphs_are_fed_and_read_in_their_own_dtypes(
    kind: str, random_build: Build
) -> None:
    logits = {}
    for precision in ("fp32", "fp16"):
        directory = random_build(kind, precision)
        model = open_model(directory, Manifest.read(directory), threads=1)
        slot, first = read(model, 0, IDS)
        logits[precision] = np.concatenate([first, *(model.step({slot: t})[0] for t in ANSWER)])
        cached = {buffer.dtype.name for buffer in model.caches.buffers.values()}
        assert cached == {"float32" if precision == "fp32" else "float16"}
        model.close()
    full, half = (row.astype(np.float64) for row in logits.values())
    assert full @ half / np.linalg.norm(full) / np.linalg.norm(half) > 0.9999


def test_a_build_that_lacks_a_graph_is_refused(
    kind: str, random_build: Build, tmp_path: Path
) -> None:
    data = json.loads((random_build(kind) / "manifest.json").read_text())
    del data["components"]["language_model"]["graphs"]["batched_decoder"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match="no language_model graph batched_decoder"):
        open_model(tmp_path, Manifest.read(tmp_path))


def test_forks_are_copied_in_one_call(
    kind: str, random_build: Build, host_device: Any, reference: Any
) -> None:
    def on_device(specs: Any, shape: Any) -> DeviceCaches:
        return DeviceCaches(specs, shape, host_device, 0, memory="cpu")

    model = opened(random_build(kind), ON_CPU, slots=5, make_caches=on_device)
    parents = [read(model, seed, IDS)[0] for seed in range(2)]
    model.step(dict.fromkeys(parents, ANSWER[0]))
    children = [model.acquire() for _ in range(3)]
    host_device.calls.clear()
    model.fork(dict(zip(children, (parents[1], parents[0], parents[1]), strict=True)))
    prefixes = 2 if model.start_token is not None else 1  # T5's cross-attention has its own
    assert host_device.calls.count("copy_boxes") == prefixes
    assert host_device.calls.count("synchronize") == prefixes
    logits = model.step(dict.fromkeys([*parents, *children], ANSWER[1]))
    for row, seed in zip(logits, (0, 1, 1, 0, 1), strict=True):
        wanted = recomputed(reference, visual(seed), ANSWER[:2])[-1]
        assert np.abs(row - wanted).max() < 1e-4
    model.close()


def test_a_gpu_is_chosen_by_its_number(
    random_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((random_build("llama") / "manifest.json").read_text())
    data["components"]["language_model"]["engine"]["kind"] = "onnxruntime-cuda"
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    manifest, placements = Manifest.read(tmp_path), []

    def opened(directory: Path, manifest: Manifest, placement: Placement, **options: Any) -> Any:
        placements.append(placement)
        raise EngineError("no GPU here")

    monkeypatch.setattr("iblip.engines.language_model.onnx.opening.open_graphs", opened)
    for opening in (open_model, open_engine):
        with pytest.raises(EngineError, match="no GPU here"):
            opening(random_build("llama"), manifest, device=1)
    assert placements == [Placement(kind="onnxruntime-cuda", device=1)] * 2


def test_an_engine_of_another_kind_is_refused(random_build: Build, tmp_path: Path) -> None:
    data = json.loads((random_build("llama") / "manifest.json").read_text())
    data["components"]["language_model"]["engine"]["kind"] = "llm-9000"
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(
        EngineError,
        match=r"'llm-9000'; this version runs onnxruntime, onnxruntime-cuda, openvino, vllm\.",
    ):
        open_engine(tmp_path, Manifest.read(tmp_path))
    del data["components"]["language_model"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match="has no language_model"):
        open_engine(tmp_path, Manifest.read(tmp_path))


@pytest.mark.parametrize("kind", ["t5"], indirect=True)
def test_t5_reads_prompts_longer_than_those_of_its_training(
    kind: str, random_build: Build, whole: Any
) -> None:
    """Its positions are relative: transformers reads them, and a build that is told to."""
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    prompt = "What colour is the 3? " * 60
    request = GenerationRequest(
        prompt=prompt, visual_prompt=visual(0), options=GenerationOptions(max_new_tokens=20)
    )
    with (
        open_engine(directory, manifest, threads=1) as usual,
        pytest.raises(InputError, match=r"at most 507 fit.*`--max-length` of `iblip build`"),
    ):
        usual.submit(request)
    limits = EngineLimits(positions=1024)
    ids = PromptTokenizer.from_build(directory, manifest, max_length=1024)(prompt).ids
    assert 700 < len(ids) < 1000
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    wanted = whole.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        do_sample=False,
        max_new_tokens=20,
    )[0, 1:].tolist()
    with open_engine(directory, manifest, threads=1, limits=limits) as engine:
        answer = engine.submit(request).result()
    ends = manifest.language_model.eos_token_ids
    assert list(answer.token_ids) == [token for token in wanted if token not in ends]


@pytest.mark.parametrize("kind", ["llama", "opt"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_the_token_that_an_original_begins_with_is_penalised(
    kind: str, random_build: Build, whole: Any, options: dict[str, Any]
) -> None:
    """`generate` given ids of that token alone beside the embeddings, as transformers 4.33 makes
    them: its repetition penalty sees the token and the answer."""
    directory = random_build(kind)
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    prompt = "What colour is the 3?"
    ids = PromptTokenizer.from_build(directory, manifest)(prompt).ids
    embeds = whole.get_input_embeddings()(torch.tensor([ids]))
    embeds = torch.cat([torch.from_numpy(visual(0)), embeds], dim=1)
    settings = {"repetition_penalty": 1.5, "max_new_tokens": 12, **options}

    def generate(**inputs: Any) -> list[int]:
        ids: list[int] = whole.language_model.generate(
            **inputs,
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            eos_token_id=list(facts.eos_token_ids),
            **settings,
        )[0].tolist()
        return ids

    first = generate()[0]
    wanted = generate(input_ids=torch.tensor([[first]]))[1:]
    assert wanted != generate()
    found = {}
    for start in (None, first):
        changed = replace(manifest, language_model=replace(facts, start_token_id=start))
        with open_engine(directory, changed, threads=1) as engine:
            chosen = GenerationOptions(penalty_scope="answer", **settings)
            request = GenerationRequest(prompt=prompt, visual_prompt=visual(0), options=chosen)
            found[start] = list(engine.submit(request).result().token_ids)
    ends = facts.eos_token_ids
    assert found[first] == [token for token in wanted if token not in ends]
    assert found[None] == [token for token in generate() if token not in ends]
