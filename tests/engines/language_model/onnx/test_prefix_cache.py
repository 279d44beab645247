"""The prefix cache: what is read of a prompt once serves those that begin alike, bit for bit."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iblip.engines.language_model.onnx.graph import ON_CPU, ON_GPU, Shapes
from iblip.engines.language_model.onnx.opening import MODELS, open_graphs
from iblip.engines.language_model.onnx.slots import Slot
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.pipeline import Pipeline
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import EngineError
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image

Build = Callable[..., Path]
Array = np.ndarray[Any, Any]
Opened = Callable[..., Any]

ANSWER = (30, 51, 9)
OTHER = 61
"""A token that `text` never has."""

IMAGE = 4
"""Positions of an image in the random models."""


@pytest.fixture(params=["minigpt4", "opt"], ids=["llama", "opt"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[CPU, None], ids=["onnxruntime", "openvino"])
def placement(request: pytest.FixtureRequest) -> Placement | None:
    if request.param is None:
        pytest.importorskip("openvino")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def opened(random_build: Build) -> Iterator[Opened]:
    """`opened(kind, …)`: the language model of a small random build; closed after the test."""
    models = []

    def make(
        kind: str, placement: Placement | None = CPU, shapes: Shapes = ON_CPU, **options: Any
    ) -> Any:
        directory = random_build(kind)
        manifest = Manifest.read(directory)
        facts = manifest.language_model
        graphs = open_graphs(directory, manifest, placement, threads=1)
        make_model = MODELS[facts.is_encoder_decoder]
        models.append(make_model(graphs, facts, shapes=shapes, **options))
        return models[-1]

    yield make
    for model in models:
        model.close()


def visual(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((1, IMAGE, 32)).astype(np.float32)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 60, length).tolist()


def begin(model: Any, image: Array, ids: Sequence[int]) -> tuple[Slot, Any, int]:
    """A prompt that has got its slot, and how many of its positions were there."""
    slot, prompt = model.acquire(), model.read(image, PromptIds(tuple(ids)))
    return slot, prompt, model.reuse(slot, prompt)


def answer(model: Any, image: Array, ids: Sequence[int]) -> tuple[Slot, int, Array]:
    """The slot of a prompt, how much of it was there, and logits `[1 + len(ANSWER), vocab]`."""
    slot, prompt, reused = begin(model, image, ids)
    while prompt.done < prompt.positions:
        logits = model.prefill({slot: prompt}, model.piece)[slot]
    return slot, reused, np.stack([logits, *(model.step({slot: t})[0] for t in ANSWER)])


def asked(model: Any, image: Array, ids: Sequence[int]) -> tuple[int, Array]:
    """As `answer`; the slot is free again, and the prompt stays in it."""
    slot, reused, logits = answer(model, image, ids)
    model.release(slot, keep=True)
    return reused, logits


@pytest.mark.parametrize("length", [9, 65, 66, 100])
def test_logits_are_the_same_bit_for_bit(
    kind: str, placement: Placement | None, opened: Opened, length: int
) -> None:
    """However much is there: the image, an odd number, all but the last position, all."""
    model, without = opened(kind, placement), opened(kind, placement, prefix_cache=False)
    ids, most = text(length - IMAGE), (length - 2) // 2 * 2
    for equal in (IMAGE, IMAGE + 1, (IMAGE + length) // 2, most - 1, length - 1, length):
        image = visual(equal)
        asked(model, image, [*ids[: equal - IMAGE], OTHER, *text(9, seed=1)])
        reused, logits = asked(model, image, ids)
        assert reused == min(equal // 2 * 2, most)
        nothing, wanted = asked(without, image, ids)
        assert nothing == 0
        assert (logits == wanted).all()
    assert np.ptp(wanted) > 0


def test_prompts_that_differ_share_only_where_they_are_equal(kind: str, opened: Opened) -> None:
    model, ids = opened(kind, slots=8), text(9)
    image, other = visual(0), visual(0)
    other[0, -1, -1] = np.nextafter(other[0, -1, -1], np.float32(9))
    assert asked(model, image, ids)[0] == 0
    assert asked(model, other, ids)[0] == 0  # a bit of an image is another image
    assert asked(model, image, [OTHER, *ids])[0] == IMAGE
    placed = PromptIds((*ids[:4], OTHER, *ids[4:]), (2,))  # a template precedes the image
    slot, prompt = model.acquire(), model.read(image, placed)
    assert model.reuse(slot, prompt) == 0
    while prompt.done < prompt.positions:
        model.prefill({slot: prompt}, 3)
    moved, prompt = model.acquire(), model.read(image, PromptIds(placed.ids, (4,)))
    assert model.reuse(moved, prompt) == 2


def test_a_prompt_that_is_still_answered_serves_others(kind: str, opened: Opened) -> None:
    model, without = opened(kind, slots=3), opened(kind, prefix_cache=False)
    ids = text(9)
    running, _, _ = answer(model, visual(0), [*ids, OTHER])
    _, reused, logits = answer(model, visual(0), ids)
    assert reused == IMAGE + len(ids) - 3
    assert (logits == asked(without, visual(0), ids)[1]).all()
    assert running.length == IMAGE + len(ids) + 1 + len(ANSWER)


def test_a_prompt_that_was_not_read_to_its_end_serves_so_far(kind: str, opened: Opened) -> None:
    model, without = opened(kind), opened(kind, prefix_cache=False)
    ids = text(20)
    slot, prompt, _ = begin(model, visual(0), ids)
    model.prefill({slot: prompt}, 10)
    model.release(slot, keep=True)  # as where its caller has cancelled it
    reused, logits = asked(model, visual(0), ids)
    assert reused == 10
    assert (logits == asked(without, visual(0), ids)[1]).all()


def test_what_was_generated_is_read_again(kind: str, opened: Opened) -> None:
    """Keys and values of steps may differ in their last bits from those of a prompt."""
    model, without = opened(kind), opened(kind, prefix_cache=False)
    ids = text(20)
    asked(model, visual(0), ids)
    dialogue = [*ids, *ANSWER, *text(8, seed=1)]
    reused, logits = asked(model, visual(0), dialogue)
    assert reused == IMAGE + len(ids)
    assert (logits == asked(without, visual(0), dialogue)[1]).all()


def test_it_takes_no_slot_and_no_memory(kind: str, opened: Opened) -> None:
    """The prompt that has served nobody for longest goes first."""
    model = opened(kind, slots=3)
    first, prompt, _ = begin(model, visual(7), text(9))
    second, _, _ = answer(model, visual(8), text(9))
    model.prefill({first: prompt}, model.piece)
    embeds = [weakref.ref(slot.prompt.embeds) for slot in (first, second)]
    model.release(first, keep=True)  # moves behind the second
    model.release(second, keep=True)
    del first, second, prompt
    assert [one() for one in embeds] == [None, None]
    places = {name: buffer.ctypes.data for name, buffer in model.caches.buffers.items()}
    ids = text(9)
    for seed, there in ((0, False), (1, False), (0, True), (2, False), (3, False)):
        assert (asked(model, visual(seed), ids)[0] > 0) == there
    assert asked(model, visual(0), ids)[0] > 0
    assert asked(model, visual(1), ids)[0] == 0  # 3 has taken its place
    taken = [model.acquire() for _ in range(3)]
    assert [slot.row for slot in taken] == [0, 1, 2]
    assert places == {name: buffer.ctypes.data for name, buffer in model.caches.buffers.items()}


def test_questions_about_one_image_leave_room_for_others(kind: str, opened: Opened) -> None:
    model = opened(kind, slots=2)
    asked(model, visual(0), text(3))
    for seed in range(5):
        asked(model, visual(1), text(3, seed=seed))
    assert asked(model, visual(0), text(3))[0] > 0


def test_sequences_that_run_are_not_touched(kind: str, opened: Opened) -> None:
    """They move as others leave, and others begin where prompts have stayed."""
    model, without = opened(kind, slots=4), opened(kind, slots=4, prefix_cache=False)
    found = []
    for one in (model, without):
        first, second, third = (answer(one, visual(seed), text(9))[0] for seed in range(3))
        one.release(first, keep=True)  # the third moves into its row
        fourth, _, logits = answer(one, visual(0), text(9))
        fork = one.acquire()
        one.fork({fork: second})
        steps = one.step(dict.fromkeys((fourth, second, third, fork), 7))
        one.release(third, keep=True)
        steps = np.concatenate([steps, one.step(dict.fromkeys((second, fork), 8))])
        one.release(second, keep=True)
        again, _, more = answer(one, visual(2), [*text(9), OTHER])
        steps = np.concatenate([steps, one.step(dict.fromkeys((again, fork, fourth), 9))])
        found.append(np.concatenate([logits, more, steps]))
    assert (found[0] == found[1]).all()


def test_a_nan_is_not_handed_on(kind: str, opened: Opened) -> None:
    model = opened(kind, slots=3)
    image = np.full_like(visual(0), np.nan)
    spoiled, reused, logits = answer(model, image, text(9))
    assert np.isnan(logits).all()
    other, reused, _ = answer(model, image, text(9))
    assert reused == 0
    for slot in (spoiled, other):
        model.release(slot, keep=True)
    assert not any(np.isnan(buffer).any() for buffer in model.caches.buffers.values())
    assert asked(model, image, text(9))[0] == 0


def test_on_a_gpu_it_serves_where_a_run_is_shorter(kind: str, opened: Opened) -> None:
    """Short prompts are read together there, padded to 64 positions; here on the CPU's provider."""
    model, without = (opened(kind, shapes=ON_GPU, prefix_cache=on) for on in (True, False))
    assert asked(model, visual(0), text(9))[0] == asked(model, visual(0), text(9))[0] == 0
    ids = text(90)
    asked(model, visual(1), ids)
    reused, logits = asked(model, visual(1), ids)
    assert reused == IMAGE + len(ids) - 2
    assert np.abs(logits - asked(without, visual(1), ids)[1]).max() < 1e-4


def test_an_encoder_has_no_prefixes(opened: Opened) -> None:
    model = opened("t5")
    for _ in range(2):
        slot, prompt, reused = begin(model, visual(0), text(9))
        assert reused == 0
        model.prefill({slot: prompt}, model.piece)
        model.step({slot: model.start_token})
        model.release(slot, keep=True)


@pytest.fixture(scope="module", params=["blip2-demo-opt", "minigpt4-demo"])
def demo(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Asking:
    """A build's language model, asked about examples.

    Args:
        directory: of the build.
        prefix_cache: whether it has one.

    Attributes:
        told: positions that answers say were taken from it.
    """

    def __init__(self, directory: Path, *, prefix_cache: bool) -> None:
        self.manifest = Manifest.read(directory)
        limits = EngineLimits(prefix_cache=prefix_cache)
        self.engine = open_engine(directory, self.manifest, threads=1, limits=limits)
        self.told = 0

    def __call__(self, image: Array, prompts: Sequence[str], **options: Any) -> list[Any]:
        """Tokens and scores of the answers to questions that are asked together."""
        asked = GenerationOptions.from_mapping(options)
        requests = [
            GenerationRequest(prompt=p, visual_prompt=image, options=asked) for p in prompts
        ]
        answers = [one.result() for one in [self.engine.submit(request) for request in requests]]
        self.told += sum(one.cached_prompt_tokens or 0 for one in answers)
        return [[(one.token_ids, one.score) for one in (a, *a.others)] for a in answers]

    def close(self) -> None:
        self.engine.close()

    @property
    def read_and_cached(self) -> tuple[int, int]:
        status = self.engine.status()
        return status.prompt_tokens, status.cached_prompt_tokens


@pytest.fixture(scope="module")
def demo_images(demo: str, demo_build: Build, checkpoints: Path) -> list[Array]:
    """Visual prompts `[1, queries, hidden]` of three images."""
    examples = read_examples(checkpoints / demo / "examples")[:3]
    with Pipeline(demo_build(demo), threads=1) as pipeline:
        settings = pipeline.manifest.preprocessing
        pixels = [pixels_from_image(example.image, settings) for example in examples]
        return [
            np.array(pipeline.visual_prompt(pipeline.encode_image(one[None]), ["What is it?"]))
            for one in pixels
        ]


QUESTIONS = ("What is it?", "What colour is the digit?", "What colour is it?", "Where is it?")


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 12},
        {"num_beams": 3, "n": 2, "max_new_tokens": 8},
        {"temperature": 1.0, "seed": 3, "n": 3, "max_new_tokens": 8},
        {"candidates": ("red", "green", "a blue three")},
    ],
    ids=("greedy", "beams", "sampled", "ranking"),
)
def test_demos_answer_alike_with_and_without(
    demo: str, demo_build: Build, demo_images: list[Array], options: dict[str, Any]
) -> None:
    """Questions about an image, one after another and together, and about images in turns."""
    found, counts = [], []
    for prefix_cache in (True, False):
        with closing(Asking(demo_build(demo), prefix_cache=prefix_cache)) as ask:
            said = []
            for image in demo_images[:2]:
                said += [ask(image, [question], **options) for question in QUESTIONS]
            said.append(ask(demo_images[2], QUESTIONS, **options))
            said += [ask(image, QUESTIONS[:1], **options) for image in demo_images]
            found.append(said)
            counts.append(ask.read_and_cached)
            assert ask.told == counts[-1][1]
            queries = ask.manifest.language_model.num_query_tokens
    assert found[0] == found[1]
    (read, cached), (all_read, nothing) = counts
    assert (read + cached, nothing) == (all_read, 0)
    assert cached >= 12 * queries  # of 15 questions, three are the first about their image


@pytest.mark.parametrize("demo", ["minigpt4-demo"], indirect=True)
def test_a_dialogue_is_read_from_its_last_turn(
    demo: str, demo_build: Build, demo_images: list[Array]
) -> None:
    turns = [
        "What is it?",
        " ###Assistant: A red three.###Human: Where is it?",
        " ###Assistant: On the left.###Human: What colour is it?",
        " ###Assistant: Red.###Human: Are you sure?",
    ]
    found, counts = [], []
    for prefix_cache in (True, False):
        with closing(Asking(demo_build(demo), prefix_cache=prefix_cache)) as ask:
            prompts = ["".join(turns[: turn + 1]) for turn in range(len(turns))]
            found.append([ask(demo_images[0], [one], max_new_tokens=10) for one in prompts])
            counts.append(ask.read_and_cached)
    assert found[0] == found[1]
    (read, cached), (all_read, _) = counts
    assert read + cached == all_read
    assert cached > 0.6 * all_read


def test_what_a_failed_run_left_is_forgotten(random_build: Build) -> None:
    prompts = ["What colour is the 3?"]
    with closing(Asking(random_build("llama"), prefix_cache=False)) as ask:
        wanted = ask(visual(0), prompts, max_new_tokens=8)
    with closing(Asking(random_build("llama"), prefix_cache=True)) as ask:
        model: Any = ask.engine._model
        step = model.step

        def fail(tokens: Any) -> Any:
            model.step = step
            for buffer in model.caches.buffers.values():
                buffer[:] = 3
            raise EngineError("no memory")

        model.step = fail
        with pytest.raises(EngineError, match="no memory"):
            ask(visual(0), prompts, max_new_tokens=8)
        assert ask(visual(0), prompts, max_new_tokens=8) == wanted
        assert ask.read_and_cached[1] == 0


def test_int8_activations_that_share_a_scale_are_read_together(
    random_build: Build, tmp_path: Path
) -> None:
    """Their scale is that of all positions of a run, so a shorter one would give other logits."""
    data = json.loads((random_build("llama") / "manifest.json").read_text())
    for activations, serves in (("float", True), ("dynamic", False)):
        data["components"]["language_model"]["quantisation"] = {"activations": activations}
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        manifest = Manifest.read(tmp_path)
        with closing(open_engine(random_build("llama"), manifest, threads=1)) as engine:
            request = GenerationRequest(prompt="What is it?", visual_prompt=visual(0))
            for _ in range(2):
                engine.submit(request).result()
            assert (engine.status().cached_prompt_tokens > 0) == serves
