"""The client's half that does no I/O, and what it needs to be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import iblip
import iblip.serving.client
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Timing
from iblip.export.errors import ServingError
from iblip.serving.client import Client, errors
from iblip.serving.client.faults import error_from_status
from iblip.serving.client.messages import (
    AnswerReader,
    KeepAlive,
    channel_options,
    contract_from_config,
    infer_request,
    ranking_options,
)
from iblip.serving.client.patience import Deadline
from iblip.serving.wire.answers import finish_from_answer
from iblip.serving.wire.names import VERSION

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)

WITHOUT = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("not installed: " + name)

sys.meta_path.insert(0, Blocker())
import numpy
from iblip.serving.client import Client, UnreachableError
try:
    Client("127.0.0.1:1").ask(numpy.zeros((4, 4, 3), numpy.uint8), "What?")
except UnreachableError as error:
    print("reached out:", error)
"""

HEAVY = {
    "ml_dtypes",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "tritonclient",
}


def test_it_needs_none_of_the_heavy_libraries():
    code = WITHOUT.format(blocked=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "reached out: no server answers at 127.0.0.1:1" in done.stdout, done.stderr


def test_its_exported_names_are_all_there_and_no_more():
    assert sorted(iblip.serving.client.__all__) == sorted(set(iblip.serving.client.__all__))
    for name in iblip.serving.client.__all__:
        assert hasattr(iblip.serving.client, name)
    assert set(errors.__all__) <= set(iblip.serving.client.__all__)


def test_the_tree_of_errors_is_drawn_as_it_is():
    drawn = [line.strip(" │├└─").split()[0] for line in errors.__doc__.splitlines() if "──" in line]
    named = set(errors.__all__) | {"UsageError", "ServingError"}
    assert sorted(drawn) == sorted(named)
    for name in ("UnreachableError", "NotServedError", "DisconnectedError", "ProtocolError"):
        assert issubclass(getattr(errors, name), ServingError)


def test_both_clients_offer_the_same():
    offered = [
        {name for name in vars(client) if not name.startswith("_")}
        for client in (
            iblip.serving.client.Client,
            iblip.serving.client.AsyncClient,
        )
    ]
    assert offered[0] == offered[1]
    assert offered[0] == {
        *("ask", "stream", "map", "rank", "lavis"),
        *("contract", "wait_until_ready", "close"),
    }


def test_a_question_as_a_message():
    options = GenerationOptions(max_new_tokens=9, temperature=0.5, stop=("#",))
    request = infer_request(PIXELS[None], "où?", options, model="m", timeout_s=1.5, stream=True)
    pixels, prompt = request.inputs
    assert (pixels.name, pixels.datatype, list(pixels.shape)) == ("pixels", "UINT8", [1, 2, 3, 3])
    assert (prompt.name, prompt.datatype, list(prompt.shape)) == ("prompt", "BYTES", [1])
    assert request.raw_input_contents[0] == PIXELS.tobytes()
    assert request.raw_input_contents[1] == b"\x04\0\0\0" + "où?".encode()
    assert request.parameters["max_new_tokens"].int64_param == 9
    assert request.parameters["temperature"].double_param == 0.5
    assert request.parameters["stop"].string_param == '["#"]'
    assert request.parameters["timeout"].int64_param == 1_500_000
    assert request.parameters["stream"].bool_param is True


def test_without_a_deadline_none_is_sent():
    request = infer_request(
        PIXELS, "a", GenerationOptions(), model="m", timeout_s=None, stream=False
    )
    assert set(request.parameters) == {"stream"}


@pytest.mark.parametrize("prompt", ["\ud800", 7, None])
def test_a_prompt_that_is_no_text_is_refused(prompt):
    with pytest.raises(errors.InputError, match="the prompt is "):
        infer_request(PIXELS, prompt, GenerationOptions(), model="m", timeout_s=None, stream=True)


def response(text="", finish="", error="", **tensors):
    tensors = tensors or {"text": text, "finish": finish}
    message = service_pb2.ModelStreamInferResponse(error_message=error)
    for name, value in tensors.items():
        data = value.encode()
        message.infer_response.outputs.add(name=name, datatype="BYTES", shape=[1])
        message.infer_response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    return message


ANSWER = Answer(
    text="a 7",
    token_ids=(3, 4),
    finish_reason="stop",
    prompt_tokens=9,
    completion_tokens=2,
    seed=5,
    timing=Timing(vision_s=0.4, queue_s=0.1, prefill_s=0.2, decode_s=0.3),
)


def test_responses_are_read_into_an_answer():
    reader = AnswerReader("host:1")
    assert [reader.feed(response(text)) for text in ("a ", "7")] == ["a ", "7"]
    assert reader.feed(response("", finish_from_answer(ANSWER))) == ""
    assert reader.feed(service_pb2.ModelStreamInferResponse()) == ""  # an empty final response
    assert reader.answer() == ANSWER


def test_a_single_response_is_an_answer_too():
    reader = AnswerReader("host:1")
    assert reader.feed(response("a 7", finish_from_answer(ANSWER))) == "a 7"
    assert reader.answer() == ANSWER


def test_a_stream_that_ends_too_early_is_said_and_its_text_kept():
    reader = AnswerReader("host:1")
    reader.feed(response("half"))
    with pytest.raises(errors.DisconnectedError, match="host:1 ended the stream before"):
        reader.answer()
    assert reader.text == "half"


def test_another_models_response_is_refused():
    with pytest.raises(errors.ProtocolError, match="sent logits; expected text, finish"):
        AnswerReader("host:1").feed(response(logits="x"))


def test_an_error_in_the_stream_is_raised_as_its_kind():
    reader = AnswerReader("host:1")
    # Not before the stream's end: to leave it earlier would hurt the server.
    assert reader.feed(response(error="in ensemble 'instructblip', OptionError: top_p is 3")) == ""
    with pytest.raises(errors.OptionError, match=r"^top_p is 3$"):
        reader.answer()


@pytest.mark.parametrize(
    ("code", "details", "kind", "message"),
    [
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: x: refused",
            "Unreachable",
            r"no server answers at h:1 \(refused\)",
        ),
        ("UNAVAILABLE", "Socket closed", "Disconnected", r"went away .* \(Socket closed\)"),
        ("UNAVAILABLE", "Exceeds maximum queue size", "QueueFull", "Exceeds maximum queue size"),
        ("UNAVAILABLE", "Request timeout expired", "Deadline", "not finished by its deadline"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "Deadline", "not finished by its deadline"),
        ("CANCELLED", "Locally cancelled", "Cancelled", "the answer was cancelled"),
        ("NOT_FOUND", "Request for unknown model: 'x' is not found", "NotServed", "unknown model"),
        (
            "INTERNAL",
            "in ensemble 'e', unexpected shape for input 'pixels'",
            "Input",
            "^unexpected shape",
        ),
        ("INTERNAL", "something broke", "Engine", "h:1 failed: something broke"),
        ("INTERNAL", "in ensemble 'e', InputError: empty", "Input", "^empty$"),
        ("DATA_LOSS", "bits", "Client", "h:1 failed: bits"),
    ],
)
def test_every_failure_of_grpc_has_its_error(code, details, kind, message):
    error = error_from_status(code, details, url="h:1")
    assert type(error).__name__ == kind + "Error"
    with pytest.raises(type(error), match=message):
        raise error


def test_only_another_priority_than_usual_is_sent():
    def sent(**priority):
        request = infer_request(
            PIXELS[None],
            "Why?",
            GenerationOptions(),
            model="m",
            timeout_s=None,
            stream=True,
            **priority,
        )
        return {name: value.string_param for name, value in request.parameters.items()}

    assert "priority_class" not in sent() | sent(priority="interactive")
    assert sent(priority="bulk")["priority_class"] == "bulk"
    with pytest.raises(errors.OptionError, match="priority is 'slow'; expected \"interactive\" or"):
        sent(priority="slow")


def test_a_ranking_needs_something_to_rank():
    assert ranking_options(["a", "b"], None).candidates == ("a", "b")
    with pytest.raises(errors.OptionError, match="candidates is empty; expected at least one text"):
        ranking_options([], None)
    for other in (None, "red", 5):
        with pytest.raises(errors.OptionError, match=r"^candidates is .*; expected a list of"):
            ranking_options(other, None)


def test_arguments_of_another_type_are_refused_by_name():
    with Client("127.0.0.1:1") as client:
        for arguments, message in (
            ({"options": 5}, "options is 5; expected GenerationOptions, or a mapping"),
            ({"options": "x"}, "options is 'x'; expected GenerationOptions, or a mapping"),
            ({"compat": 5}, "compat is 5; expected text or None"),
            ({"timeout": True}, "timeout is True; expected more than 0 seconds"),
        ):
            with pytest.raises(errors.OptionError, match=f"^{message}"):
                client.ask("a.png", "?", **arguments)
        with pytest.raises(errors.OptionError, match=r"^timeout is 'x'; expected more than 0"):
            client.wait_until_ready("x")
    with pytest.raises(errors.OptionError, match=r"^model is 5; expected text"):
        Client(model=5)


def test_a_server_of_another_wire_is_refused():
    config = service_pb2.ModelConfigResponse()
    with pytest.raises(
        errors.ProtocolError, match=f"wire version is none; this client speaks {VERSION}"
    ):
        contract_from_config(config)
    config.config.parameters["wire_version"].string_value = str(VERSION)
    config.config.parameters["preprocessing"].string_value = "{}"
    with pytest.raises(
        errors.ProtocolError,
        match=r"parameter preprocessing of the server's model config is \{\}; expected a JSON "
        r"object of height, width, resample\. Serve a build made by this version, or install the ",
    ):
        contract_from_config(config)


def test_a_deadline_is_one_budget_for_several_calls():
    deadline = Deadline(1000)
    first = deadline.remaining()
    assert first is not None
    assert 0 < deadline.remaining() <= first <= 1000
    assert Deadline(None).remaining() is None
    short = Deadline(1e-9)
    time.sleep(0.001)
    with pytest.raises(errors.DeadlineError):
        short.remaining()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_deadline_that_is_none_is_refused(seconds):
    with pytest.raises(errors.OptionError, match="timeout_s is "):
        Deadline(seconds)


def test_the_channel_keeps_its_message_limits_beside_the_keepalive():
    options = dict(channel_options(KeepAlive(every_s=30, timeout_s=5)))
    assert options["grpc.max_receive_message_length"] == 2**31 - 1
    assert options["grpc.max_send_message_length"] == 2**31 - 1
    assert options["grpc.keepalive_time_ms"] == 30_000
    with pytest.raises(errors.OptionError, match="more than 0 seconds"):
        KeepAlive(every_s=0)


def test_the_models_of_the_repository_import_nothing_heavy():
    sources = Path(iblip.__file__).parent / "model_repository"
    for path in sources.glob("*/1/model.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "transformers"}, path
