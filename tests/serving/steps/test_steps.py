"""What the Python models do, without Triton."""

from __future__ import annotations

import importlib.util
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import model_repository
from iblip.engines.language_model.opening import EngineLimits
from iblip.engines.language_model.types import (
    Answer,
    GenerationRequest,
    TextDelta,
    Timing,
)
from iblip.export.errors import EngineError, InputError, OptionError, QueueFullError
from iblip.serving.steps.answering import Answering
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.batches import run_joined
from iblip.serving.steps.ending import EXIT_STATUS
from iblip.serving.steps.prompts import check_fault, seconds_since, text_tensors

PICTURE = np.zeros((1, 4, 6, 3), np.uint8)
REQUEST = GenerationRequest(prompt="What?", visual_prompt=np.zeros((1, 8, 4), np.float32))


def answer(text, reason="eos"):
    return Answer(
        text=text,
        token_ids=(),
        finish_reason=reason,
        prompt_tokens=1,
        completion_tokens=1,
        seed=None,
        timing=Timing(vision_s=0, queue_s=0, prefill_s=0, decode_s=0),
    )


class FakeGeneration:
    """Hands out events as the test puts them in; cancelled, it ends as an engine's would."""

    def __init__(self, events=()):
        self.events = queue.SimpleQueue()
        self.cancelled = threading.Event()
        for event in events:
            self.events.put(event)

    def __iter__(self):
        while True:
            event = self.events.get(timeout=10)
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Answer):
                return

    def cancel(self):
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.events.put(answer("", "cancelled"))


class FakeEngine:
    def __init__(self, *generations):
        self.generations = list(generations)
        self.running = []

    def submit(self, request):
        generation = self.generations.pop(0)
        if isinstance(generation, Exception):
            raise generation
        self.running.append(generation)
        return generation

    def close(self):
        for generation in self.running:
            generation.events.put(EngineError("the engine is closed"))


class FakeReply:
    """Collects; fails the test where it is used after its end."""

    def __init__(self):
        self.texts = []
        self.end = None
        self.ended = threading.Event()
        self.gone = threading.Event()
        self.asked_late = False

    def delta(self, text):
        assert not self.ended.is_set()
        self.texts.append(text)

    def finish(self, answer):
        self._end(answer)

    def fail(self, error):
        self._end(error)

    def is_cancelled(self):
        self.asked_late |= self.ended.is_set()
        return self.gone.is_set()

    def _end(self, end):
        assert not self.ended.is_set()
        self.end = end
        self.ended.set()


@pytest.fixture
def answering():
    opened = []

    def make(*generations):
        opened.append(Answering(FakeEngine(*generations), poll_s=0.001))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_deltas_then_the_finish(answering):
    reply = FakeReply()
    deltas = [TextDelta(text="a ", token_ids=(1,)), TextDelta(text="7", token_ids=(2,))]
    answering(FakeGeneration([*deltas, answer("a 7")])).answer(REQUEST, reply)
    assert reply.ended.wait(10)
    assert reply.texts == ["a ", "7"]
    assert reply.end.text == "a 7"


@pytest.mark.parametrize("error", [QueueFullError("256 wait"), InputError("too long")])
def test_a_refused_request_fails_at_once(answering, error):
    reply = FakeReply()
    answering(error).answer(REQUEST, reply)
    assert reply.end is error


def test_an_engines_failure_reaches_its_caller_after_the_text(answering):
    reply = FakeReply()
    error = EngineError("broken")
    answering(FakeGeneration([TextDelta(text="a", token_ids=(1,)), error])).answer(REQUEST, reply)
    assert reply.ended.wait(10)
    assert reply.texts == ["a"]
    assert reply.end is error


def test_a_caller_who_goes_before_the_first_text_frees_the_engine(answering):
    generation, reply = FakeGeneration(), FakeReply()
    answering(generation).answer(REQUEST, reply)
    reply.gone.set()
    assert generation.cancelled.wait(10)
    assert reply.ended.wait(10)
    assert reply.end.finish_reason == "cancelled"


def test_a_request_is_cancelled_by_its_id_and_no_other_is(answering):
    first, second = FakeGeneration(), FakeGeneration()
    replies = [FakeReply(), FakeReply()]
    running = answering(first, second)
    for reply, name in zip(replies, ("one", "two"), strict=True):
        running.answer(REQUEST, reply, name)
    assert running.cancel("two") == 1
    assert replies[1].ended.wait(10)
    assert second.cancelled.is_set()
    assert not first.cancelled.is_set()
    assert running.cancel("three") == 0


def test_a_cancellation_may_overtake_its_request(answering):
    generation, reply = FakeGeneration(), FakeReply()
    running = answering(generation)
    assert running.cancel("late") == 0
    running.answer(REQUEST, reply, "late")
    assert reply.ended.wait(10)
    assert reply.end.finish_reason == "cancelled"


def test_requests_without_an_id_are_cancelled_by_none(answering):
    generations, replies = [FakeGeneration(), FakeGeneration()], [FakeReply(), FakeReply()]
    running = answering(*generations)
    running.answer(REQUEST, replies[0])
    assert running.cancel("") == 0
    running.answer(REQUEST, replies[1])
    assert not any(generation.cancelled.is_set() for generation in generations)


def test_nothing_is_asked_of_a_reply_after_its_end(answering):
    # Triton's own answer to that question is a segmentation fault.
    replies = [FakeReply() for _ in range(50)]
    running = answering(*(FakeGeneration([answer("x")]) for _ in replies))
    for reply in replies:
        running.answer(REQUEST, reply)
    assert all(reply.ended.wait(10) for reply in replies)
    assert not any(reply.asked_late for reply in replies)


def test_a_reply_that_cannot_be_sent_cancels_the_answer_and_spares_the_others(answering):
    class Broken(FakeReply):
        def delta(self, text):
            raise RuntimeError("the caller has gone")

    broken, whole = Broken(), FakeReply()
    first = FakeGeneration([TextDelta(text="a", token_ids=(1,))])
    running = answering(first, FakeGeneration([answer("b")]))
    running.answer(REQUEST, broken)
    running.answer(REQUEST, whole)
    assert first.cancelled.wait(10)
    assert whole.ended.wait(10)
    assert whole.end.text == "b"


LOST = EngineError("ONNX Runtime failed (CUDA failure 700: an illegal memory access ; GPU=0)")

ENDING = """
import sys, threading
from iblip.export.errors import EngineError
from iblip.serving.steps import ending

assert not ending.end_if_fatal(EngineError("CUDA failure 2: out of memory ; GPU=0"))
for _ in range(2):
    assert ending.end_if_fatal(EngineError(sys.argv[1]))
print("answered", flush=True)  # there is time for it
threading.Event().wait(60)
"""


def test_a_process_without_its_gpu_answers_and_ends():
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(LOST)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (EXIT_STATUS, "answered\n")
    assert done.stderr.count("cudaErrorIllegalAddress: this process can no longer use the GPU") == 1


def test_what_ends_the_process_is_told_after_the_caller_knows_it():
    told = []
    replies = [FakeReply(), FakeReply()]

    def failed(error):
        told.append((error, [reply.end for reply in replies if reply.ended.is_set()]))

    running = Answering(FakeEngine(FakeGeneration([LOST]), LOST), poll_s=0.001, failed=failed)
    running.answer(REQUEST, replies[0])
    while not told:
        time.sleep(0.001)
    running.answer(REQUEST, replies[1])
    running.close()
    assert told == [(LOST, [LOST]), (LOST, [LOST, LOST])]


class TritonError(str):
    INTERNAL = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"

    def __new__(cls, text, code):
        return str.__new__(cls, f"{code}: {text}")


def test_a_component_without_its_gpu_answers_and_ends(monkeypatch):
    backend = types.ModuleType("pb_utils")
    backend.TritonError = TritonError
    backend.InferenceResponse = lambda output_tensors, error: error
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "iblip.serving.steps.component_model", raising=False)
    module = importlib.import_module("iblip.serving.steps.component_model")
    ended = []
    monkeypatch.setattr(module, "end_if_fatal", ended.append)
    pixels = types.SimpleNamespace(name=lambda: "pixels", as_numpy=lambda: PICTURE)
    request = types.SimpleNamespace(inputs=lambda: [pixels])

    def fail(feed):
        raise LOST

    model = module.ComponentModel()
    model.runner, model.largest = types.SimpleNamespace(infer=fail), 8
    model.rules = types.SimpleNamespace(checked=lambda tensors: tensors)
    (response,) = model.execute([request])
    assert "CUDA failure 700" in response
    assert ended == [LOST]


def test_closing_ends_what_is_running():
    reply = FakeReply()
    running = Answering(FakeEngine(FakeGeneration()), poll_s=0.001)
    running.answer(REQUEST, reply)
    running.close()
    assert isinstance(reply.end, EngineError)


def doubled(feed):
    return {"y": feed["x"] * 2, "sum": feed["x"].sum(axis=1, keepdims=True)}


def feed(*rows):
    return {"x": np.array(rows, dtype=np.int64)}


def test_requests_of_one_shape_run_once_and_get_their_own_rows():
    runs = []

    def infer(joined):
        runs.append(joined["x"].shape)
        return doubled(joined)

    results = run_joined([feed([1, 2]), feed([3, 4], [5, 6]), feed([7, 8, 9])], infer, largest=8)
    assert runs == [(3, 2), (1, 3)]
    assert [result["y"].tolist() for result in results] == [
        [[2, 4]],
        [[6, 8], [10, 12]],
        [[14, 16, 18]],
    ]
    assert [result["sum"].tolist() for result in results] == [[[3]], [[7], [11]], [[24]]]


def test_a_failed_run_is_the_result_of_its_own_requests_only():
    def infer(joined):
        if joined["x"].shape[1] == 3:
            raise EngineError("no threes")
        return doubled(joined)

    good, bad = run_joined([feed([1, 2]), feed([1, 2, 3])], infer, largest=8)
    assert good["y"].tolist() == [[2, 4]]
    assert isinstance(bad, EngineError)


def test_a_request_that_fails_takes_no_other_of_its_run_with_it():
    runs = []

    def infer(joined):
        runs.append(len(joined["x"]))
        if (joined["x"] == 6).any():
            raise EngineError("no sixes")
        return doubled(joined)

    asked = [feed([1, 2]), feed([3, 4], [5, 6]), feed([7, 8])]
    first, bad, last = run_joined(asked, infer, largest=8)
    assert runs == [4, 1, 2, 1]
    assert (first["y"].tolist(), last["y"].tolist()) == ([[2, 4]], [[14, 16]])
    assert isinstance(bad, EngineError)


def test_nothing_is_run_again_without_a_gpu():
    runs = []

    def infer(joined):
        runs.append(len(joined["x"]))
        raise LOST

    assert run_joined([feed([1, 2]), feed([3, 4])], infer, largest=8) == [LOST, LOST]
    assert runs == [2]


def test_more_rows_than_an_engine_takes_are_run_in_turns():
    runs = []

    def infer(joined):
        runs.append(joined["x"].ravel().tolist())
        return doubled(joined)

    results = run_joined([feed([1]), feed([2], [3], [4], [5]), feed([6])], infer, largest=2)
    assert runs == [[1, 2], [3, 4], [5, 6]]
    assert [r["y"].ravel().tolist() for r in results] == [[2], [4, 6, 8, 10], [12]]


def triton_arguments(directory, *, kind="CPU", device=0, groups=(), **parameters):
    """As Triton 2.51 has them: it fills in a group, and each group's GPUs."""
    groups = list(groups) or [{"kind": f"KIND_{kind}", "count": 1, "gpus": []}]
    written = {name: {"string_value": value} for name, value in parameters.items()}
    model = directory / "model_repository" / "qformer"
    model.mkdir(parents=True, exist_ok=True)
    return {
        "model_repository": str(model),
        "model_config": json.dumps({"parameters": written, "instance_group": groups}),
        "model_instance_kind": kind,
        "model_instance_device_id": str(device),
    }


def test_a_step_finds_its_build_from_its_own_folder(make_build):
    directory, manifest = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, build="../..", threads="2"))
    assert step.directory == directory.resolve()
    assert step.manifest == manifest
    assert step.threads == 2


@pytest.mark.parametrize(
    ("kind", "number", "device"), [("GPU", 0, 0), ("GPU", 3, 3), ("CPU", 0, 0), ("MODEL", 0, 0)]
)
def test_a_step_is_on_the_gpu_of_its_instance(make_build, kind, number, device):
    directory, _ = make_build()
    arguments = triton_arguments(directory, build="../..", kind=kind, device=number)
    assert StepArguments.from_triton(arguments).device == device


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ([{"count": 1, "gpus": []}], 1),
        ([{"count": 1, "gpus": [2]}], 1),
        ([{"count": 2, "gpus": []}], 2),
        ([{"count": 1, "gpus": [0, 1]}], 2),
        ([{"count": 2, "gpus": [0, 1]}, {"count": 1, "gpus": [2]}], 5),
    ],
)
def test_what_schedules_its_own_requests_is_alone(make_build, groups, instances):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, build="../..", groups=groups))
    assert step.instances == instances
    if instances == 1:
        step.check_alone()
    else:
        message = f"asks for {instances} instances, but one .* answers many .* `count: 1`"
        with pytest.raises(OptionError, match=message):
            step.check_alone()


def model_of(name, monkeypatch):
    """The module `model_repository/<name>/1/model.py`, without Triton's own module."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("pb_utils"))
    path = Path(model_repository.__file__).parent / name / "1" / "model.py"
    spec = importlib.util.spec_from_file_location(f"{name}_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OpenedError(Exception):
    """What would have been opened."""


def opening(*arguments, **options):
    raise OpenedError(arguments, options)


@pytest.mark.parametrize("name", ["vision_encoder", "qformer"])
def test_a_component_is_opened_on_its_instances_gpu(make_build, monkeypatch, name):
    module = model_of(name, monkeypatch)
    monkeypatch.setattr("iblip.serving.steps.component_model.open_runner", opening)
    directory, manifest = make_build(kind="onnxruntime-cuda")
    written = {"build": "../..", "component": name, "threads": "2"}
    with pytest.raises(OpenedError) as found:
        module.TritonPythonModel().initialize(
            triton_arguments(directory, kind="GPU", device=1, **written)
        )
    arguments, options = found.value.args
    assert arguments == (directory.resolve(), manifest, name)
    assert options == {"threads": 2, "device": 1}


def test_the_language_model_is_opened_on_its_instances_gpu_if_it_is_alone(make_build, monkeypatch):
    module = model_of("language_model", monkeypatch)
    monkeypatch.setattr(module, "open_engine", opening)
    directory, _ = make_build()
    arguments = triton_arguments(directory, kind="GPU", device=1, build="../..")
    with pytest.raises(OpenedError) as found:
        module.TritonPythonModel().initialize(arguments)
    assert found.value.args[1] == {"threads": None, "device": 1, "limits": EngineLimits()}
    groups = [{"count": 1, "gpus": [0, 1]}]
    arguments = triton_arguments(directory, kind="GPU", build="../..", groups=groups)
    with pytest.raises(OptionError, match="asks for 2 instances"):
        module.TritonPythonModel().initialize(arguments)


@pytest.mark.parametrize("text", ["-1", "two", ""])
def test_threads_that_are_no_number_are_refused(make_build, text):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, build="../..", threads=text))
    with pytest.raises(OptionError, match="threads is "):
        _ = step.threads


def test_the_limits_are_the_operators(make_build):
    directory, _ = make_build()
    written = {"slots": "2", "max_length": "90", "queue": "5"}
    step = StepArguments.from_triton(triton_arguments(directory, build="../..", **written))
    assert step.limits == EngineLimits(slots=2, positions=90, queue=5)
    shutil.rmtree(directory / "model_repository")
    step = StepArguments.from_triton(triton_arguments(directory, build="../.."))
    assert step.limits == EngineLimits()


@pytest.mark.parametrize("name", ["slots", "max_length", "queue"])
@pytest.mark.parametrize("text", ["0", "-1", "many", ""])
def test_limits_that_are_no_number_are_refused(make_build, name, text):
    directory, _ = make_build()
    step = StepArguments.from_triton(triton_arguments(directory, build="../..", **{name: text}))
    with pytest.raises(OptionError, match=f"{name} is '{text}' in config.pbtxt; expected an int"):
        _ = step.limits


def test_the_text_step_notes_when_a_request_came():
    before = time.monotonic()
    tensors = text_tensors(np.array([b"What?"], dtype=object), PICTURE, None, 1)
    assert set(tensors) == {"accepted_pixels", "arrived", "fault"}
    assert tensors["accepted_pixels"] is PICTURE
    check_fault(tensors["fault"])
    empty = np.array([b""], dtype=object)  # a caption is asked
    check_fault(text_tensors(empty, PICTURE, None, 1)["fault"])
    check_fault(None)
    assert 0 <= seconds_since(tensors["arrived"]) <= time.monotonic() - before
    assert seconds_since(None) == 0


class Words:
    """An instruction tokenizer that counts words."""

    def __call__(self, prompt, **cut):
        count = len(prompt.split())
        if count > 30:
            raise InputError(f"the instruction has {count} tokens; at most 30 fit")
        return {"qformer_input_ids": np.full((1, count), count, np.int64)}


def test_every_image_is_read_with_the_same_instruction():
    pixels = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)
    tensors = text_tensors(np.array([b"What is it?"], dtype=object), pixels, Words(), 3)
    check_fault(tensors["fault"])
    assert tensors["qformer_input_ids"].tolist() == [[3, 3, 3]] * 3
    assert (tensors["accepted_pixels"] == pixels).all()


@pytest.mark.parametrize(
    ("prompt", "images", "parameters", "message"),
    [
        (b" ", 1, {}, "the prompt is empty"),
        (b"\xff", 2, {}, "not UTF-8"),
        (b"long " * 40, 1, {}, "the instruction has 40 tokens; at most 30 fit"),
        (b"What?", 0, {}, "the request has 0 images; expected 1 to 3"),
        (b"What?", 4, {}, "the request has 4 images; expected 1 to 3"),
        (b"What?", 1, {"truncation": "up"}, "truncation is 'up'; expected '', 'left' or 'right'"),
    ],
)
def test_a_faulty_request_is_passed_on_for_the_language_model_to_tell(
    prompt, images, parameters, message
):
    pixels = np.full((images, 4, 6, 3), 7, np.uint8)
    tensors = text_tensors(np.array([prompt], dtype=object), pixels, Words(), 3, parameters)
    assert tensors["qformer_input_ids"].shape == (1, 1)
    assert tensors["accepted_pixels"].tolist() == np.zeros((1, 4, 6, 3)).tolist()
    with pytest.raises(OptionError if parameters else InputError, match=message):
        check_fault(tensors["fault"])
