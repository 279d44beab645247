"""How long clients wait and what they ask again, of a real gRPC server that fails on cue."""

from __future__ import annotations

import asyncio
import itertools
import time

import grpc
import pytest

from iblip.engines.language_model.option_table import OPTIONS
from iblip.serving.client import (
    AsyncClient,
    CancelledError,
    Client,
    DeadlineError,
    DisconnectedError,
    EngineError,
    GenerationOptions,
    InputError,
    NotReadyError,
    NotServedError,
    OptionError,
    ProtocolError,
    QueueFullError,
    RefusedError,
    Retries,
    Timeout,
    UnknownHostError,
    UnreachableError,
    UntrustedError,
)
from iblip.serving.client.mapping import Question
from iblip.serving.client.patience import UNSET, Attempts
from tests.serving.client.asking import IMAGE, SOON, ask, both
from tests.serving.client.scripted import (
    FULL,
    LOST,
    REFUSED,
    STOPPING,
    Server,
    break_off,
    fail,
    hang,
    say,
)


@pytest.mark.parametrize(
    "script",
    [
        [FULL],
        [REFUSED],
        [FULL, REFUSED, FULL, FULL, FULL],
        [LOST],
        [LOST, FULL],
        [break_off],
        [STOPPING],
        [say(error="EngineError: the server is stopping")],
    ],
)
@both
def test_what_a_server_did_not_answer_is_asked_again(ask, script):
    with Server(script) as server:
        assert ask(server) == "yes"
        assert len(server.requests) == len(script) + 1


@pytest.mark.parametrize(
    ("script", "error", "message", "asked"),
    [
        ([LOST, LOST], DisconnectedError, "went away before", 2),
        ([break_off, LOST], DisconnectedError, "went away before", 2),
        ([say(error="EngineError: broken")], EngineError, "^broken$", 1),
        ([say(error="InputError: empty")], InputError, "^empty$", 1),
        ([say("half", error="QueueFullError: full")], QueueFullError, "^full$", 1),
        (
            [fail(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' is not found")],
            NotServedError,
            "does not serve this model",
            1,
        ),
    ],
)
@both
def test_other_failures_are_not(ask, script, error, message, asked):
    with Server(script) as server:
        with pytest.raises(error, match=message):
            ask(server)
        assert len(server.requests) == asked


@both
def test_nothing_is_asked_again_where_the_caller_says_so(ask):
    with Server([FULL]) as server:
        with pytest.raises(QueueFullError, match="maximum queue size"):
            ask(server, retries=0)
        assert len(server.requests) == 1
    with Server([FULL] * 4) as server:
        with pytest.raises(QueueFullError):
            ask(server, retries=Retries(limit=2, first_s=0.01))
        assert len(server.requests) == 3


def test_a_stream_is_asked_again_only_before_its_first_text():
    with Server([FULL, say("ha", "lf", error="QueueFullError: full")]) as server:
        with Client(server.url, retries=SOON) as client:
            stream = client.stream(IMAGE, "Why?")
            assert [next(stream), next(stream)] == ["ha", "lf"]
            with pytest.raises(QueueFullError):
                next(stream)
            assert stream.text == "half"
        assert len(server.requests) == 2


def test_nothing_is_asked_again_after_the_total_timeout():
    with Server([FULL] * 10_000) as server:
        with Client(server.url, retries=SOON) as client:
            client.wait_until_ready()
            with pytest.raises(QueueFullError):  # the reason, rather than that time is over
                client.ask(IMAGE, "Why?", timeout=Timeout(total=3))
        seconds = [request.parameters["timeout"].int64_param / 1e6 for request in server.requests]
        assert len(seconds) > 1
        assert max(seconds) <= 3
        assert all(a > b for a, b in itertools.pairwise(seconds))  # each is told what is left


@both
def test_a_stuck_answer_ends_with_the_total_timeout(ask):
    with Server([hang]) as server:
        with pytest.raises(DeadlineError, match=r"Allow more time with timeout= \(--timeout\)"):
            ask(server, timeout=3)
        assert len(server.requests) == 1


def test_when_the_server_says_to_come_back_is_when():
    pushback = fail(grpc.StatusCode.UNAVAILABLE, "maximum queue size", grpc_retry_pushback_ms="300")
    later = fail(grpc.StatusCode.UNAVAILABLE, "maximum queue size", retry_after="0.3")
    for hint in (pushback, later):
        with Server([hint]) as server:
            started = time.monotonic()
            assert ask(server) == "yes"
            assert time.monotonic() - started >= 0.3
    never = fail(grpc.StatusCode.UNAVAILABLE, "maximum queue size", grpc_retry_pushback_ms="-1")
    too_late = fail(grpc.StatusCode.UNAVAILABLE, "maximum queue size", retry_after="3600")
    for hint, after in ((never, None), (too_late, 3600)):
        with Server([hint]) as server, pytest.raises(QueueFullError) as caught:
            ask(server)
        assert len(server.requests) == 1
        assert caught.value.retry_after_s == after
    http = fail(grpc.StatusCode.UNAVAILABLE, "queue size", retry_after="Wed, 21 Oct 2026 07:28:00")
    with Server([http]) as server:
        assert ask(server) == "yes"


def test_an_asynchronous_stream_may_be_awaited_entered_or_neither():
    async def run(url):
        texts = []
        async with AsyncClient(url) as client:
            async for text in client.stream(IMAGE, "Why?"):
                texts.append(text)  # noqa: PERF401 (as a caller writes it)
            stream = await client.stream(IMAGE, "Why?")
            texts += [text async for text in stream]
            assert (await stream.answer()).text == "yes"
            async with client.stream(IMAGE, "Why?") as stream:
                texts += [text async for text in stream]
            async with await client.stream(IMAGE, "Why?") as stream:
                texts += [text async for text in stream]
            texts.append((await client.stream(IMAGE, "Why?").answer()).text)
        return texts

    with Server() as server:
        assert asyncio.run(run(server.url)) == ["yes"] * 5
        assert len(server.requests) == 5


@both
def test_options_are_keywords_an_object_or_a_mapping(ask):
    with Server() as server:
        ask(server, max_new_tokens=30, stop=["#"])
        ask(server, options={"max_new_tokens": 5, "temperature": 0.5}, max_new_tokens=30)
        ask(server, options=GenerationOptions(max_new_tokens=5, n=2, temperature=1), n=1)
        sent = [request.parameters for request in server.requests]
        assert sent[0]["max_new_tokens"].int64_param == 30
        assert sent[0]["stop"].string_param == '["#"]'
        assert sent[1]["max_new_tokens"].int64_param == 30
        assert sent[1]["temperature"].double_param == 0.5
        assert sent[2]["max_new_tokens"].int64_param == 5
        assert "n" not in sent[2]
        with pytest.raises(OptionError, match="Did you mean 'max_new_tokens'"):
            ask(server, max_new_token=30)


def test_keywords_are_the_options_there_are():
    from iblip.engines.language_model.keywords import GenerationKeywords

    assert list(GenerationKeywords.__annotations__) == list(OPTIONS)


def rows():
    yield (IMAGE, "one")
    yield {"image": IMAGE, "prompt": "two", "max_new_tokens": 7}
    yield {"image": IMAGE, "prompt": "three", "options": {"top_k": 3}, "priority": "interactive"}
    yield {"image": "nowhere.png", "prompt": "four"}
    yield {"image": IMAGE, "prompt": "five", "max_new_token": 7}


def map_sync(url):
    with Client(url, retries=SOON) as client:
        return list(client.map(rows(), concurrency=1, max_new_tokens=5, top_k=9))


def map_async(url):
    async def run():
        async with AsyncClient(url, retries=SOON) as client:
            results = client.map(rows(), concurrency=1, max_new_tokens=5, top_k=9)
            return [result async for result in results]

    return asyncio.run(run())


@pytest.mark.parametrize("run", [map_sync, map_async])
def test_many_rows_with_arguments_of_their_own(run):
    with Server([FULL]) as server:
        results = run(server.url)
        assert [result.text for result in results[:3]] == ["yes"] * 3
        assert [type(result.error) for result in results[3:]] == [InputError, OptionError]
        sent = [
            {
                name: parameter.int64_param or parameter.string_param
                for name, parameter in request.parameters.items()
            }
            for request in server.requests[1:]
        ]
    assert [one["max_new_tokens"] for one in sent] == [5, 7, 5]
    assert [one["top_k"] for one in sent] == [9, 9, 3]
    assert [one.get("priority_class") for one in sent] == ["bulk", "bulk", None]


def test_an_asyncio_client_serves_loops_that_run_at_the_same_time():
    async def both_loops(client):
        await client.ask(IMAGE, "Why?")
        others = [asyncio.to_thread(asyncio.run, many(client)) for _ in range(3)]
        return [text for texts in await asyncio.gather(many(client), *others) for text in texts]

    async def many(client):
        answers = await asyncio.gather(*(client.ask(IMAGE, "Why?") for _ in range(10)))
        return [answer.text for answer in answers]

    with Server() as server:
        client = AsyncClient(server.url)
        assert asyncio.run(both_loops(client)) == ["yes"] * 40
        asyncio.run(client.close())


def test_errors_say_whether_they_are_retryable():
    retryable = (QueueFullError, UnreachableError, NotReadyError, DisconnectedError)
    assert all(kind("").is_retryable for kind in retryable)
    others = (
        *(UnknownHostError, NotServedError, DeadlineError, EngineError, InputError, OptionError),
        *(CancelledError, RefusedError, UntrustedError, ProtocolError),
    )
    assert not any(kind("").is_retryable for kind in others)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "timeout is 0; expected more than 0 seconds, at most 1e.09, or None"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1; expected 0 or more"),
        ({"retries": True}, "retries is True"),
        ({"retries": "3"}, "retries is '3'"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_patience_that_is_none_is_refused(kind, settings, message):
    with pytest.raises(OptionError, match=message):
        kind("127.0.0.1:1", **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Timeout(total=0), "total is 0"),
        (lambda: Timeout(connect=-1), "connect is -1"),
        (lambda: Retries(first_s=2, longest_s=1), "longest_s is below first_s"),
        (lambda: Retries(longest_s=0), "longest_s is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_timeout_is_two_numbers_one_or_none():
    default = Timeout()
    assert (default.connect, default.total) == (5, 600)
    assert Timeout.settled(30, default) == Timeout(connect=30, total=30)
    assert Timeout.settled(None, default) == Timeout(connect=None, total=None)
    assert Timeout.settled(UNSET, default) is default
    assert repr(default) == "Timeout(connect=5.0, total=600.0)"
    assert eval(repr(default)) == default


def test_pauses_grow_up_to_the_longest():
    retries = Retries(first_s=0.1, longest_s=1.0)
    for number, longest in enumerate((0.1, 0.2, 0.4, 0.8, 1.0, 1.0), start=1):
        assert all(longest / 2 <= retries.pause(number) <= longest for _ in range(20))
    attempts = Attempts(Timeout(connect=None, total=None), Retries(first_s=10, longest_s=10))
    assert max(attempts.pause(UnreachableError("")) for _ in range(5)) <= 1


def test_a_row_is_read_with_what_holds_for_all():
    from iblip.serving.client.base import Asked, asked_of_row

    others = Asked(
        image=(), prompt="", options={"top_k": 2}, compat="hf", priority="bulk", timeout=3
    )
    own = {"options": GenerationOptions(top_k=5), "timeout": None, "seed": 1}
    asked = asked_of_row(Question(image="a", prompt="b", arguments=own), others)
    assert (asked.image, asked.prompt, asked.compat) == ("a", "b", "hf")
    assert asked.timeout is None
    assert asked.options == {"top_k": 5, "seed": 1}
