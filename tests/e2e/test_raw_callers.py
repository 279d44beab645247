"""What a caller without our client gets: plain tritonclient over gRPC and HTTP, right and wrong."""

from __future__ import annotations

import json
import queue
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from iblip.export.images import pixels_from_image


@pytest.fixture
def pixels(served, picture):
    return pixels_from_image(picture, served.manifest.preprocessing)[None]


def tensors(pixels, prompt=b"What digit is it?"):
    names = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
    first = grpcclient.InferInput("pixels", list(pixels.shape), names[pixels.dtype])
    first.set_data_from_numpy(pixels)
    data = np.array([prompt], dtype=np.object_)
    second = grpcclient.InferInput("prompt", list(data.shape), "BYTES")
    second.set_data_from_numpy(data)
    return [first, second]


def ask(served, inputs, parameters=None, **options):
    client = grpcclient.InferenceServerClient(served.url)
    return client.infer("instructblip_unary", inputs, parameters=parameters, **options)


def stream(served, inputs, parameters=None):
    """Every response of the stream; an error is the last."""
    responses = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: responses.put(error or result))
        client.async_stream_infer(
            "instructblip", inputs, parameters=parameters, enable_empty_final_response=True
        )
        while True:
            response = responses.get(timeout=60)
            yield response
            if isinstance(response, InferenceServerException):
                return
            if response.get_response().parameters["triton_final_response"].bool_param:
                return


def test_one_answer(served, pixels, picture):
    result = ask(served, tensors(pixels))
    reference = served.in_process(picture, "What digit is it?")
    assert result.as_numpy("text").tolist() == [reference.text.encode()]
    finish = json.loads(result.as_numpy("finish")[0])
    assert finish["token_ids"] == list(reference.token_ids)
    assert finish["finish_reason"] == reference.finish_reason


def test_two_images_are_read_one_after_the_other(served, examples):
    preprocessing = served.manifest.preprocessing
    images = [pixels_from_image(example.image, preprocessing) for example in examples[:2]]
    result = ask(served, tensors(np.stack(images)))
    reference = served.pipeline.answer(np.stack(images), "What digit is it?")
    assert result.as_numpy("text").tolist() == [reference.text.encode()]
    finish = json.loads(result.as_numpy("finish")[0])
    assert finish["prompt_tokens"] == reference.prompt_tokens


def test_a_stream_ends_with_the_finish_on_its_final_response(served, pixels, picture):
    responses = list(stream(served, tensors(pixels)))
    texts = [response.as_numpy("text")[0] for response in responses]
    finishes = [response.as_numpy("finish")[0] for response in responses]
    assert b"".join(texts).decode() == served.in_process(picture, "What digit is it?").text
    assert not any(finishes[:-1])
    assert json.loads(finishes[-1])["finish_reason"] in ("eos", "length")


def test_options_with_fractions_reach_the_engine_from_the_one_answer_model(served, pixels):
    options = {"temperature": 0.7, "top_p": 0.5, "seed": 3, "max_new_tokens": 4}
    first, second = (ask(served, tensors(pixels), options) for _ in range(2))
    assert first.as_numpy("text").tolist() == second.as_numpy("text").tolist()
    assert json.loads(first.as_numpy("finish")[0])["seed"] == 3


FAULTS = [
    ({"top_p": 1.5}, "OptionError: top_p is 1.5; expected a number above 0, at most 1"),
    ({"temprature": 1}, "OptionError: there is no option 'temprature'. Did you mean 'temperature'"),
    (
        {"stop": "###"},
        "OptionError: stop is '###'; expected a list of at most 1000 non-empty strings",
    ),
    ({"max_new_tokens": "many"}, "OptionError: max_new_tokens is 'many'; expected an integer"),
]


@pytest.mark.parametrize(("parameters", "message"), FAULTS)
def test_bad_options_are_named(served, pixels, parameters, message):
    with pytest.raises(InferenceServerException, match="OptionError") as caught:
        ask(served, tensors(pixels), parameters)
    assert message in caught.value.message()
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    (last,) = list(stream(served, tensors(pixels), parameters))
    assert message in last.message()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels[:, :-1], "unexpected shape for input 'pixels'"),
        (lambda pixels: pixels[0], "unexpected shape for input 'pixels'"),
        (lambda pixels: pixels.repeat(9, axis=0), "the request has 9 images; expected 1 to 4"),
        (lambda pixels: pixels[:0], "the request has 0 images; expected 1 to 4"),
        (lambda pixels: pixels.astype(np.float32), "data-type is 'FP32', but model"),
    ],
    ids=["size", "rank", "many", "none", "dtype"],
)
def test_wrong_pixels_are_refused_with_what_is_wanted(served, pixels, change, message):
    with pytest.raises(InferenceServerException, match=message):
        ask(served, tensors(change(pixels)))
    (last,) = list(stream(served, tensors(change(pixels))))
    assert message in last.message()


def test_a_missing_input_is_named(served, pixels):
    with pytest.raises(InferenceServerException, match="InputError: the input 'prompt' is missing"):
        ask(served, tensors(pixels)[:1])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (b"", "InputError: the prompt is empty"),
        (b"\xff\xfe", "InputError: the prompt is not UTF-8"),
        (b"digit " * 2000, "InputError: the instruction has 200"),
        (b"digit " * 5000, "InputError: the prompt has 30000 bytes; expected at most 16384"),
    ],
)
def test_bad_prompts_are_refused(served, pixels, prompt, message):
    with pytest.raises(InferenceServerException, match=message):
        ask(served, tensors(pixels, prompt))


def test_a_request_may_bring_its_own_deadline(served, pixels):
    length = served.long.min_new_tokens
    with pytest.raises(InferenceServerException, match=r"DeadlineError|timeout expired"):
        ask(
            served,
            tensors(pixels),
            {"min_new_tokens": length, "max_new_tokens": length},
            timeout=20_000,
        )  # microseconds
    assert ask(served, tensors(pixels)).as_numpy("text").shape == (1,)


def test_the_ensemble_says_that_it_streams(served, pixels):
    client = grpcclient.InferenceServerClient(served.url)
    with pytest.raises(InferenceServerException, match="decoupled transaction policy"):
        client.infer("instructblip", tensors(pixels))


def test_an_error_over_http_has_a_status_and_a_text(served, pixels):
    body = {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "UINT8",
                "shape": list(pixels.shape),
                "data": pixels.ravel().tolist(),
            },
            {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [" "]},
        ]
    }
    request = urllib.request.Request(
        f"{served.server.http_url}/v2/models/instructblip_unary/infer", json.dumps(body).encode()
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    assert "InputError: the prompt is empty" in json.load(caught.value)["error"]
