"""The batched decoder on the real CUDA provider over the stubs: what a step asks of a GPU.

Numbers mean nothing here; that they are right is shown on the CPU's provider, by the same graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from iblip.engines.language_model.onnx.decoder_only import DecoderOnly
from iblip.engines.language_model.onnx.opening import open_model
from iblip.engines.language_model.onnx.slots import Slot
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from tests.cuda_stub.counting import counted

pytestmark = pytest.mark.cuda_stub

SLOTS = 5

Model = Callable[[str], DecoderOnly]


@pytest.fixture
def model(cuda_build: Callable[[str, str], Path]) -> Iterator[Model]:
    """`model("instructblip-demo-vicuna")`: its language model in fp16, warm."""
    opened = []

    def make(demo: str) -> DecoderOnly:
        build = cuda_build(demo, "fp16")
        opened.append(open_model(build, Manifest.read(build), slots=SLOTS))
        opened[-1].warm_up()
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def read(model: DecoderOnly, count: int) -> list[Slot]:
    """Reads prompts into slots."""
    facts = model.facts
    image = np.zeros((1, facts.num_query_tokens, facts.hidden_size), np.float32)
    slots = [model.acquire() for _ in range(count)]
    left = {slot: model.read(image, PromptIds(tuple(range(5, 12)))) for slot in slots}
    while left := {slot: prompt for slot, prompt in left.items() if not prompt.done}:
        model.prefill(left, model.piece)
    return slots


@pytest.mark.parametrize("demo", ["instructblip-demo-vicuna", "blip2-demo-opt"])
def test_a_step_is_one_replayed_graph_without_copies(demo, model, record):
    one = model(demo)
    slots = read(one, SLOTS)
    for rows in (SLOTS, 2, 1, 2):
        with counted() as counts:
            one.step(dict.fromkeys(slots[:rows], 7))
        assert counts["graph_launches"] == counts["synchronizations"] == 1
        assert counts.calls == 1
        assert counts["captures"] == counts["allocations"] == counts["faults"] == 0
    record(f"{demo}, a step", calls=(counts.calls, 1), waits=(counts["synchronizations"], 1))


def test_each_number_of_rows_is_captured_once_as_the_model_warms_up(model):
    with counted() as counts:
        one = model("instructblip-demo-vicuna")
    assert counts["captures"] == counts["graphs"] == SLOTS
    slots = read(one, SLOTS)
    with counted() as counts:
        for rows in range(1, SLOTS + 1):
            one.step(dict.fromkeys(slots[:rows], 7))
    assert counts["graph_launches"] == SLOTS
    assert counts["launches"] == 0


def test_the_engine_replays_what_it_captured_as_it_opened(cuda_build):
    """Captured graphs are a thread's own: the engine's worker captures them, and runs the steps."""
    build = cuda_build("instructblip-demo-vicuna", "fp16")
    manifest = Manifest.read(build)
    facts = manifest.language_model
    request = GenerationRequest(
        prompt="which digit is it?",
        visual_prompt=np.zeros((1, facts.num_query_tokens, facts.hidden_size), np.float32),
        options=GenerationOptions(max_new_tokens=9, min_new_tokens=9),
    )
    limits = EngineLimits(slots=2)
    with closing(open_engine(build, manifest, limits=limits)) as engine, counted() as counts:
        engine.submit(request).result()
    assert counts["captures"] == counts["allocations"] == counts.copies == 0
    assert counts["graph_launches"] == 8  # the first token is the prompt's


def test_short_prompts_are_read_in_one_run_without_copies(model, record):
    one = model("instructblip-demo-vicuna")
    facts = one.facts
    image = np.zeros((1, facts.num_query_tokens, facts.hidden_size), np.float32)
    prompts = {one.acquire(): one.read(image, PromptIds((5, 6, 7))) for _ in range(2)}
    with counted() as counts:
        found = one.prefill(prompts, one.piece)
    record("two prompts in one run", launches=counts["launches"], copies=(counts.copies, 0))
    assert len(found) == 2
    assert counts.copies == 0
    assert counts["synchronizations"] == 1
    assert counts["captures"] == counts["allocations"] == 0  # of a shape that was warmed up


def test_the_forks_of_a_step_are_one_call(model, record):
    one = model("instructblip-demo-vicuna")
    parents = read(one, 2)
    children = [one.acquire() for _ in range(3)]
    with counted() as counts:
        one.fork(dict(zip(children, (parents[0], parents[1], parents[0]), strict=True)))
    record("three forks of all layers", calls=(counts.calls, 1))
    assert counts.calls == counts["synchronizations"] == 1


def test_a_closed_model_gives_its_memory_back(cuda_build):
    build = cuda_build("instructblip-demo-vicuna", "fp16")
    manifest, left = Manifest.read(build), []
    for _ in range(2):
        with counted() as counts:
            one = open_model(build, manifest, slots=2)
            one.warm_up()
            read(one, 2)
            one.close()
            del one
        left.append({name: counts[name] for name in ("allocated_bytes", "graphs")})
    assert left[1] == {"allocated_bytes": 0, "graphs": 0}
