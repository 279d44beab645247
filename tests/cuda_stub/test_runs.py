"""Whole builds on the real CUDA provider over the stubs: what they do to a GPU.

Tokens mean nothing here: kernels compute nothing.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from checkpoints import DEMOS
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.errors import EngineError
from iblip.export.system.installing import install_command
from tests.cuda_stub.bounds import STEPS
from tests.cuda_stub.counting import counted, read_counters, settings

pytestmark = pytest.mark.cuda_stub

LLAMA, T5 = "instructblip-demo-vicuna", "instructblip-demo-flant5"

PROMPT = "which digit is at the left?"


FAMILIES = [LLAMA, T5]

RESOURCES = ("allocated_bytes", "streams", "events", "graphs")
"""Counters of what exists now."""


def image_of(pipeline: Pipeline, seed: int = 0) -> np.ndarray:
    size = pipeline.manifest.preprocessing
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


def work() -> int:
    """Kernels and graphs launched so far."""
    counters = read_counters()
    return counters["launches"] + counters["graph_launches"]


def length(tokens: int, **options: object) -> GenerationOptions:
    return GenerationOptions(min_new_tokens=tokens, max_new_tokens=tokens, **options)


@pytest.mark.parametrize("demo", DEMOS)
def test_a_decode_step_stays_within_its_bounds(demo, opened, record):
    pipeline, found = opened(demo), {}
    facts, image = pipeline.manifest.language_model, image_of(pipeline)
    pipeline.answer(image, PROMPT, length(8))
    for tokens in (4, 20):
        with counted() as counts:
            assert pipeline.answer(image, PROMPT, length(tokens)).completion_tokens == tokens
        found[tokens] = counts
    step = {name: (found[20][name] - found[4][name]) / 16 for name in found[4]}
    copies = step["host_to_device"] + step["device_to_host"] + step["device_to_device"]
    bound, per_layer = STEPS[facts.architecture], step["launches"] / facts.num_layers
    record(
        f"{demo}, a decode step, {facts.num_layers} layers",
        launches=step["launches"],
        per_layer=(per_layer, bound.per_layer),
        copies=(copies, bound.copies),
        synchronizations=(step["synchronizations"], bound.synchronizations),
        graph_launches=step["graph_launches"],
    )
    assert per_layer <= bound.per_layer
    assert copies <= bound.copies
    assert step["synchronizations"] <= bound.synchronizations
    assert step["allocations"] <= 0  # the first tokens take more than later ones
    assert step["faults"] == 0


def test_an_image_goes_to_the_gpu_once_and_its_features_stay_there(opened, record):
    pipeline = opened(LLAMA)
    pixels = image_of(pipeline)[None]
    pipeline.encode_image(image_of(pipeline, 1)[None])
    with counted() as counts:
        embeds = pipeline.encode_image(pixels)
    record(
        "one image through the vision encoder",
        launches=counts["launches"],
        copies=counts.copies,
        synchronizations=counts["synchronizations"],
    )
    assert embeds.value.device_name() == "cuda"
    assert pixels.nbytes <= counts["host_to_device_bytes"] <= pixels.nbytes + 1024
    assert counts["device_to_host_bytes"] == 0
    with counted() as counts:
        pipeline.visual_prompt(embeds, [PROMPT])
    record("its features through the Q-Former", launches=counts["launches"], copies=counts.copies)
    assert counts["host_to_device_bytes"] < 4096


@pytest.mark.parametrize("demo", FAMILIES)
def test_several_images_are_asked_about_at_once(demo, opened):
    pipeline = opened(demo)
    images = np.stack([image_of(pipeline, seed) for seed in range(2)])
    assert pipeline.answer(images, PROMPT, length(4)).completion_tokens == 4


@pytest.mark.parametrize("demo", FAMILIES)
def test_beams_fork_within_the_gpu(demo, opened, record):
    pipeline = opened(demo)
    image, beams = image_of(pipeline), length(12, num_beams=3)
    for _ in range(3):
        with counted() as counts:
            pipeline.answer(image, PROMPT, beams)
    record(
        f"{demo}, 12 tokens with 3 beams",
        device_to_device=counts["device_to_device"],
        synchronizations=counts["synchronizations"],
    )
    assert counts["allocated_bytes"] == counts["faults"] == 0


@pytest.mark.parametrize("demo", FAMILIES)
def test_candidates_are_ranked(demo, opened):
    pipeline = opened(demo)
    with counted() as counts:
        answer = pipeline.answer(
            image_of(pipeline), PROMPT, GenerationOptions(candidates=("one", "two", "seven"))
        )
    assert {ranked.text for ranked in answer.ranking} == {"one", "two", "seven"}
    assert counts["faults"] == 0


@pytest.mark.parametrize("demo", FAMILIES)
def test_a_cancelled_request_stops_the_gpu(demo, opened):
    pipeline = opened(demo)
    image, longest = image_of(pipeline), pipeline.manifest.language_model.max_length - 64
    pipeline.answer(image, PROMPT, length(2))
    generation = pipeline.submit(image, PROMPT, length(longest))
    begun = work()
    while work() < begun + 100:  # more than the prompt takes, fewer than all tokens
        time.sleep(0.01)
    generation.cancel()
    answer = generation.result()
    assert answer.finish_reason == "cancelled"
    assert 0 < answer.completion_tokens < longest
    idle = work()
    time.sleep(0.2)
    assert work() == idle


@pytest.mark.parametrize("demo", DEMOS)
def test_a_pipeline_gives_back_everything_and_takes_no_more_with_time(demo, cuda_build):
    with counted() as counts:
        with Pipeline(cuda_build(demo, "fp16")) as pipeline:
            for _ in range(3):  # the first ones make room, and keep their images' features
                with counted() as later:
                    for seed in range(3):
                        pipeline.answer(image_of(pipeline, seed), PROMPT, length(8))
        assert later["allocated_bytes"] == 0
    assert counts["allocations"] == counts["frees"] > 0
    assert counts["pinned_allocations"] == counts["pinned_frees"]
    assert {name: counts[name] for name in RESOURCES} == dict.fromkeys(RESOURCES, 0)
    assert counts["faults"] == 0


def test_an_opening_that_finds_no_room_says_so_and_gives_back_everything(cuda_build):
    build = cuda_build(LLAMA, "fp16")
    with (
        settings(total_bytes=read_counters()["allocated_bytes"] + 2**22),
        counted() as counts,
        pytest.raises(EngineError, match=r"(?i)memory"),
        Pipeline(build),
    ):
        pass
    assert {name: counts[name] for name in RESOURCES} == dict.fromkeys(RESOURCES, 0)


BROKEN = """
import sys
import numpy as np
from pathlib import Path
from iblip.engines.pipeline import Pipeline
from tests.cuda_stub.counting import settings
with Pipeline(Path(sys.argv[1])) as pipeline:
    size = pipeline.manifest.preprocessing
    try:
        with settings(fail_after=100):
            pipeline.answer(np.zeros((size.height, size.width, 3), np.uint8), "which digit?")
    except Exception as error:
        print(type(error).__mro__, error, flush=True)
"""


def test_a_gpu_that_breaks_ends_the_request_with_a_named_error(cuda_build, in_process_of_its_own):
    done = in_process_of_its_own(BROKEN, cuda_build(LLAMA, "fp16"))
    assert "EngineError" in done.stdout
    assert "illegal" in done.stdout.lower()


OBSTACLE = """
from iblip.engines.onnxruntime.probing import provider_obstacle
print(provider_obstacle("onnxruntime-cuda"))
"""


def test_nothing_stands_in_the_way_of_the_provider(in_process_of_its_own):
    assert in_process_of_its_own(OBSTACLE).stdout == "None\n"


def test_a_missing_cudnn_is_noticed_before_anything_is_opened(in_process_of_its_own):
    obstacle = in_process_of_its_own(OBSTACLE, cudnn=False).stdout
    assert "CUDAExecutionProvider cannot be loaded (libcudnn.so.9: cannot open" in obstacle
    assert install_command("gpu") in obstacle


def test_a_machine_without_a_gpu_is_told_apart(in_process_of_its_own):
    assert "no NVIDIA driver with a GPU" in in_process_of_its_own(OBSTACLE, devices=0).stdout
