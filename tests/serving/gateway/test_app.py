"""A gateway over HTTP, before a server that does as it is told, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import suppress
from hashlib import sha256

import grpc
import openai
import pytest

from iblip.export.errors import IblipError
from iblip.serving.client import Timeout
from iblip.serving.gateway.callers import Caller, Callers
from iblip.serving.gateway.errors import REFUSALS, error_object, headers_of, refusal_of
from iblip.serving.wire.names import PRIORITY
from tests.ports import closed_port
from tests.serving.client.scripted import LOST, REFUSED, STOPPING, fail, say
from tests.serving.gateway.running import gateway, messages

KEY = "0123456789abcdef"


class Hanging:
    """Says some pieces, then nothing until its caller has gone."""

    def __init__(self, *pieces):
        self.asked, self.gone, self._pieces = threading.Event(), threading.Event(), pieces

    def __call__(self, context):
        if not context.add_callback(self.gone.set):
            self.gone.set()
        yield from (one for one in say(*self._pieces)(context) if self._is_text(one))
        self.asked.set()
        self.gone.wait(60)

    @staticmethod
    def _is_text(response):
        return b"finish_reason" not in response.infer_response.raw_output_contents[1]


def test_an_answer_as_openai_writes_it(server, running):
    server.script.append(say("A", " cat"))
    answer = running.ask("What is it?", max_tokens=7, seed=3, extra_body={"priority_class": "bulk"})
    assert answer.object == "chat.completion"
    assert answer.model == "x"
    assert answer.choices[0].message.content == "A cat"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    (request,) = server.requests
    assert b"What is it?" in request.raw_input_contents[1]
    assert request.inputs[0].shape == [1, 8, 8, 3]
    assert request.parameters["max_new_tokens"].int64_param == 7
    assert request.parameters["seed"].int64_param == 3
    assert request.parameters[PRIORITY].string_param == "bulk"
    assert not request.parameters["stream"].bool_param


def test_a_stream_has_every_piece_as_it_comes(server, running):
    hanging = Hanging("A", " cat")
    server.script.append(hanging)
    with running.ask(stream=True) as chunks:
        first, second, third = (next(chunks).choices[0].delta for _ in range(3))
    assert (first.role, first.content) == ("assistant", "")
    assert (second.content, third.content) == ("A", " cat")
    assert server.requests[0].parameters["stream"].bool_param
    assert hanging.gone.wait(10)


def test_a_stream_ends_with_its_reason_and_its_usage(server, running):
    server.script += [say("A", " cat"), say("A")]
    chunks = list(running.ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == "A cat"
    assert [one.choices[0].finish_reason for one in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 1
    assert all(one.usage is None for one in chunks[:-1])
    assert all(one.usage is None for one in running.ask(stream=True))


@pytest.mark.parametrize("cached", [0, 1])
def test_usage_says_what_the_prefix_cache_had(server, running, cached):
    server.script += [say("A", cached=cached), say("A", cached=cached)]
    answer = running.ask()
    assert answer.usage.prompt_tokens_details.cached_tokens == cached
    chunks = list(running.ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == cached
    server.script.append(say("A"))  # vLLM, or a server from before
    assert running.ask().usage.prompt_tokens_details is None


def test_an_asynchronous_client(server, running):
    server.script += [say("one"), say("t", "wo")]

    async def run():
        async with running.async_client as client:
            create = client.chat.completions.create
            whole = await create(model="x", messages=messages())
            stream = await create(model="x", messages=messages(), stream=True)
            pieces = [one.choices[0].delta.content or "" async for one in stream]
            return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(run()) == ("one", "two")


def test_a_closed_list_is_a_ranking_and_its_answer_json(server, running):
    schema = {"type": "string", "enum": ["red", "blue"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    server.script += [say("red"), say("blue")]
    answer = running.ask(response_format=form)
    assert json.loads(answer.choices[0].message.content) == "red"
    assert json.loads(server.requests[0].parameters["candidates"].string_param) == ["red", "blue"]
    chunks = [
        one.choices[0].delta.content for one in running.ask(stream=True, response_format=form)
    ]
    assert [one for one in chunks if one] == ['"blue"']


def test_models_and_health(server, running):
    assert [model.id for model in running.client.models.list()] == ["x"]
    assert running.client.models.retrieve("x").id == "x"
    with pytest.raises(openai.NotFoundError, match="there is no model 'y'"):
        running.client.models.retrieve("y")
    assert json.loads(running.send("GET", "/health")[2]) == {
        "status": "ready",
        "models": {"x": "ready"},
    }
    server.ready.append(False)
    server.ready.popleft()
    status, _, body = running.send("GET", "/health")
    assert status == 503
    assert "not ready" in json.loads(body)["models"]["x"]


FAULTS = [
    (REFUSED, openai.RateLimitError, 429, "queue_full"),
    (say(error="OptionError: top_k is -1; expected 0 or more"), openai.BadRequestError, 400, None),
    (say(error="InputError: the prompt is empty"), openai.BadRequestError, 400, "invalid_input"),
    (say(error="DeadlineError: late"), openai.InternalServerError, 504, "timeout"),
    (say(error="EngineError: it broke"), openai.InternalServerError, 500, "engine_error"),
    (STOPPING, openai.InternalServerError, 503, "unavailable"),
    (LOST, openai.InternalServerError, 503, "unavailable"),
    (
        fail(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'x'"),
        openai.InternalServerError,
        502,
        "bad_gateway",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("act", "kind", "status", "code"), FAULTS)
def test_a_fault_before_the_answer_has_its_status(server, act, kind, status, code, stream):
    server.script += [act] * 2
    with gateway(server.url, timeout=Timeout(connect=0, total=60)) as running:
        with pytest.raises(kind) as refused:
            running.ask(stream=stream)
        assert refused.value.status_code == status
        assert code is None or refused.value.code == code
        assert ("retry-after" in refused.value.response.headers) == (status in (429, 503))
        assert running.entry()["status"] == status


def test_an_option_that_the_server_refuses_is_named(server, running):
    server.script.append(say(error="OptionError: max_new_tokens is 9; expected at most 8"))
    with pytest.raises(openai.BadRequestError) as refused:
        running.ask(max_completion_tokens=9)
    assert refused.value.param == "max_completion_tokens"


def test_a_fault_in_mid_stream_is_an_event_and_the_stream_has_no_end(server, running):
    server.script.append(say("A", " cat", error="EngineError: it broke"))
    chunks = running.ask(stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="it broke"):
        texts += [one.choices[0].delta.content for one in chunks]
    assert running.entry()["error"] == "EngineError"


def test_a_server_that_is_not_there(running):
    with (
        closed_port() as port,
        gateway(f"127.0.0.1:{port}", timeout=Timeout(connect=0, total=60)) as alone,
    ):
        with pytest.raises(openai.InternalServerError, match="no server answers") as refused:
            alone.ask()
        assert refused.value.status_code == 503
        assert alone.send("GET", "/health")[0] == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [(), ("A",)])
def test_a_caller_who_leaves_cancels_the_request(server, running, stream, pieces):
    hanging = Hanging(*pieces)
    server.script.append(hanging)
    body = json.dumps({"model": "x", "messages": messages(), "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as caller:
        caller.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert hanging.asked.wait(10)
        left = time.monotonic()
    assert hanging.gone.wait(10)
    assert time.monotonic() - left < 5
    assert running.entry()["error"] == "CallerGoneError"
    assert b"open_requests 0" in running.send("GET", "/metrics")[2]


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_forgotten(running):
    with socket.create_connection(("127.0.0.1", running.port)) as caller:
        caller.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"model"'
        )
    assert running.entry()["error"] == "CallerGoneError"


def test_a_missing_key_is_401_everywhere_under_v1(server):
    callers = Callers({sha256(KEY.encode()).digest(): Caller(name="web", most_open=1)})
    with gateway(server.url, callers=callers, key=KEY) as running:
        assert running.ask().choices[0].message.content == "yes"
        assert running.entry()["caller"] == "web"
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/x"),
        ):
            status, headers, body = running.send(method, path, b"")
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert running.send("GET", "/health")[0] == 200
        document = json.loads(running.send("GET", "/openapi.json")[2])
        assert document["paths"]["/v1/models"]["get"]["security"]
        assert KEY not in "".join(running.lines)
        hanging = Hanging()
        server.script.append(hanging)
        thread = threading.Thread(target=lambda: _quietly(running))
        thread.start()
        assert hanging.asked.wait(10)
        with pytest.raises(openai.RateLimitError, match="1 requests of web are open") as refused:
            running.ask()
        assert refused.value.response.headers["retry-after"] == "1"
        hanging.gone.set()
        thread.join()


def test_all_callers_together_are_limited(server):
    hanging = Hanging()
    server.script.append(hanging)
    with gateway(server.url, max_open=1) as running:
        thread = threading.Thread(target=lambda: _quietly(running))
        thread.start()
        assert hanging.asked.wait(10)
        with pytest.raises(openai.RateLimitError, match="1 requests are open"):
            running.ask()
        hanging.gone.set()
        thread.join()
        assert running.ask().choices[0].message.content == "yes"


def _quietly(running):
    with suppress(openai.APIError):
        running.ask()


def test_the_log_says_who_asked_what_and_neither_prompt_nor_image(server, running):
    server.script.append(say("a secret answer"))
    answer = running.client.chat.completions.with_raw_response.create(
        model="x", messages=messages("a secret question"), user="secret"
    )
    entry = running.entry()
    assert answer.headers["x-request-id"] == entry["id"]
    wanted = {
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "x",
        "images": 1,
        "stream": False,
        "completion_tokens": 1,
        "finish_reason": "eos",
        "error": "",
    }
    assert {name: entry[name] for name in wanted} == wanted
    assert entry["seconds"] > 0
    assert entry["request_bytes"] > 0 < entry["response_bytes"]
    assert not any(word in "".join(running.lines) for word in ("secret", "base64"))


def test_metrics_count_answers_and_errors(server, running):
    list(running.ask(stream=True))
    with pytest.raises(openai.BadRequestError):
        running.ask(temperature=-1)
    text = running.send("GET", "/metrics")[2].decode()
    for line in (
        "iblip_gateway_open_requests 0",
        'iblip_gateway_responses_total{status="200"} 1',
        'iblip_gateway_responses_total{status="400"} 1',
        'iblip_gateway_tokens_total{kind="completion"} 1',
        "iblip_gateway_first_text_seconds_count 1",
        'iblip_gateway_answer_seconds_bucket{le="+Inf"} 1',
    ):
        assert line in text.splitlines()


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(("given", "passed"), [(PARENT, True), ("00-0af7-1", False), ("", False)])
def test_a_trace_is_passed_on_to_the_server(server, running, given, passed):
    seen = {}

    def act(context):
        seen.update(context.invocation_metadata())
        yield from say("yes")(context)

    server.script.append(act)
    running.ask(extra_headers={"traceparent": given})
    assert seen.get("traceparent") == (PARENT if passed else None)
    assert running.entry()["trace"] == (PARENT.split("-")[1] if passed else "")


def test_with_opentelemetry_a_request_is_a_span_of_the_callers_trace(server, running, monkeypatch):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    # Set as the process' own, it would be that of the other tests, too, and could not be unset.
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    seen = {}

    def act(context):
        seen.update(context.invocation_metadata())
        yield from say("yes")(context)

    server.script.append(act)
    running.ask(extra_headers={"traceparent": PARENT})
    running.entry()
    (span,) = spans.get_finished_spans()
    assert span.name == "/v1/chat/completions"
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert seen["traceparent"].split("-")[1:3] == [
        PARENT.split("-")[1],
        f"{span.context.span_id:016x}",
    ]


def kinds(base):
    """All errors of the tree."""
    return {base, *(one for kind in base.__subclasses__() for one in kinds(kind))}


def test_every_error_has_a_status():
    for kind in kinds(IblipError):
        error = kind.__new__(kind, "x")  # some want more than a message
        error.args = ("x",)
        refusal = refusal_of(error)
        assert 400 <= refusal.status < 600
        assert error_object(error)["error"]["message"] == "x"
        assert ("retry-after" in headers_of(error)) == (refusal.status in (429, 503))
    assert "secret" not in str(error_object(KeyError("secret")))
    assert {one.status for one in REFUSALS.values()} >= {400, 401, 404, 413, 429, 503, 504}
