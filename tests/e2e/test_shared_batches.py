"""Callers of a single step share its batches with everybody's questions, and must harm none."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from iblip.export.images import pixels_from_image
from iblip.serving.client import Client, GenerationOptions
from tests.fixtures.serving import same

CALLERS, ASKED = 4, 30
"""Callers who ask at the same time, and how often each does."""

ATTACKERS = 2

NAMES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}


def request(model, batch, feed):
    """A request whose shapes say `batch`, whatever its arrays `[1, ...]` hold."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, array in feed.items():
        tensor = message.inputs.add(name=name, datatype=NAMES[array.dtype.name])
        tensor.shape.extend([batch, *array.shape[1:]])
        message.raw_input_contents.append(array.tobytes())
    return message


def pixels(manifest):
    size = manifest.preprocessing  # not black: the cache may know that picture
    return {"pixels": np.full((1, size.height, size.width, 3), 7, np.uint8)}


def instruction(manifest, token=5, length=16):
    axes = manifest.components["vision_encoder"].graphs["model"].contract.outputs[0].axes[1:]
    return {
        "image_embeds": np.zeros((1, *axes), np.float32),
        "qformer_input_ids": np.full((1, length), token, np.int64),
        "qformer_attention_mask": np.ones((1, length), np.int64),
    }


ATTACKS = {
    "an empty batch of pictures": (
        lambda manifest: request("vision_encoder", 0, pixels(manifest)),
        "",  # Triton hands over one picture: that one is encoded
    ),
    "an empty batch of instructions": (
        lambda manifest: request("qformer", 0, instruction(manifest)),
        "",
    ),
    "a token that is none": (
        lambda manifest: request("qformer", 1, instruction(manifest, token=99999)),
        "InputError: 'qformer_input_ids' has the token 99999; expected 0 to ",
    ),
    "an instruction that is too long": (
        lambda manifest: request("qformer", 1, instruction(manifest, length=4000)),
        "InputError: 'qformer_input_ids' has 4000 tokens a row; expected 1 to ",
    ),
}


def outcome(stub, message):
    """What a request gets: the batch of its answer, or the code and the text of its refusal."""
    try:
        return stub.ModelInfer(message, timeout=60).outputs[0].shape[0]
    except grpc.RpcError as error:
        return error.code(), error.details()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_faulty_request_to_a_step_harms_nobody(served, attack):
    make, refusal = ATTACKS[attack]
    message, ended, outcomes = make(served.manifest), threading.Event(), []

    def send_faulty():
        with grpc.insecure_channel(served.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not ended.is_set():
                outcomes.append(outcome(stub, message))

    def ask(seed):
        shape = pixels(served.manifest)["pixels"].shape[1:]
        random = np.random.default_rng(seed)
        options = GenerationOptions(max_new_tokens=2)
        with Client(served.url, timeout=60) as client:
            for _ in range(ASKED):  # always another picture: none comes from the cache
                picture = random.integers(0, 256, shape, np.uint8)
                client.ask(picture, "What digit is it?", options=options)

    with ThreadPoolExecutor(CALLERS + ATTACKERS) as pool:
        attackers = [pool.submit(send_faulty) for _ in range(ATTACKERS)]
        callers = [pool.submit(ask, seed) for seed in range(CALLERS)]
        try:
            for caller in callers:
                caller.result()  # raises what a question met
        finally:
            ended.set()
        for attacker in attackers:
            attacker.result()
    assert len(outcomes) > ASKED
    if not refusal:
        assert set(outcomes) == {1}
        return
    for code, details in outcomes:
        assert code == grpc.StatusCode.INVALID_ARGUMENT, details
        assert refusal in details
        assert str(served.build) not in details


def test_a_picture_that_was_sent_in_an_empty_batch_is_still_seen(served, client, examples):
    """The cache answers whoever sends the same bytes."""
    example = examples[-1]
    sent = {"pixels": pixels_from_image(example.image, served.manifest.preprocessing)[None]}
    with grpc.insecure_channel(served.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for batch in (0, 0, 1):
            assert outcome(stub, request("vision_encoder", batch, sent)) == 1
    same(
        client.ask(example.image, example.prompt), served.in_process(example.image, example.prompt)
    )
