"""Really exported graphs of small random models: cached decoding, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iblip.engines.language_model.onnx.graph import ON_CPU, ON_GPU, Shapes
from iblip.engines.language_model.onnx.key_value_caches import DeviceCaches
from iblip.engines.language_model.onnx.opening import MODELS, open_graphs, open_model
from iblip.engines.language_model.onnx.slots import BatchModel, Slot
from iblip.engines.language_model.opening import open_engine
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import BuildDirectoryError, EngineError
from iblip.export.verification.loading import load_model
from tests.engines.language_model.visual import visual

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
