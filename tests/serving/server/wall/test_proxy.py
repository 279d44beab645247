"""The HTTP server before Triton, with a server behind it that writes down what it gets."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from iblip.serving.server.wall import proxy
from iblip.serving.server.wall.limits import Limits
from iblip.serving.server.wall.proxy import Listener
from iblip.serving.wire.names import CANCEL, CANCEL_KEY, UNARY

LIMITS = Limits(body=1000)


@asynccontextmanager
async def walled(folder, behind=None, caller_header=""):
    """Yields the wall's address, and what arrives behind it: method, path, headers, body."""
    arrived = []  # what a test left waiting is not waited for at its end

    async def answer(request):
        arrived.append((request.method, request.raw_path, request.headers, await request.read()))
        return await behind(request) if behind else web.Response(text="{}")

    target = str(folder / "http.sock")
    runner = web.ServerRunner(web.Server(answer, auto_decompress=False), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, target).start()
    port = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{port.getsockname()[1]}"
    task = asyncio.create_task(
        proxy.serving([Listener(port=port, target=target)], LIMITS, caller_header)
    )
    async with aiohttp.ClientSession(address) as session:
        yield session, arrived
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task  # else its sessions are collected, and warned of, in another test
    await runner.cleanup()


async def raw(session, *parts):
    """What the wall says to bytes as they are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", session._base_url.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def test_a_request_arrives_in_one_piece_and_keeps_what_is_its_own(tmp_path):
    async def test():
        async with walled(tmp_path) as (session, arrived):

            async def pieces():
                for part in (b"[1,", b"2", b"]"):
                    yield part

            headers = {"X-Own": "a", "Connection": "X-Hop", "X-Hop": "b", "Expect": "100-continue"}
            path = "/v2/models/a%20b/generate?c=%2F&d"
            async with session.post(
                URL(path, encoded=True), data=pieces(), headers=headers
            ) as response:
                assert (response.status, await response.text()) == (200, "{}")
            ((method, target, got, body),) = arrived
            assert (method, target, body) == ("POST", path, b"[1,2]")
            assert (got["X-Own"], got["Content-Length"]) == ("a", "5")
            assert not {"X-Hop", "Transfer-Encoding", "Expect"} & set(got)

    asyncio.run(test())


def test_an_answer_that_breaks_off_does_not_look_whole(tmp_path):
    begun = asyncio.Event()

    async def broken(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await begun.wait()
        request.transport.abort()
        return response

    async def test():
        async with walled(tmp_path, broken) as (session, _), session.get("/v2") as response:
            assert await response.content.readexactly(1) == b"a"
            begun.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    asyncio.run(test())


def test_without_triton_it_says_so(tmp_path):
    async def test():
        async with walled(tmp_path) as (session, _):
            (tmp_path / "http.sock").unlink()
            async with session.get("/v2/health/ready") as response:
                assert response.status == 503
                assert "does not listen" in (await response.json())["error"]

    asyncio.run(test())


def test_bodies_that_are_held_have_a_limit_together(tmp_path, monkeypatch):
    rooms = []

    class Room(proxy.Room):
        def __init__(self, size):
            super().__init__(size)
            rooms.append(self)

    monkeypatch.setattr(proxy, "HELD", 1)
    monkeypatch.setattr(proxy, "Room", Room)

    async def until_free(size):
        while not rooms or rooms[0]._free != size:
            await asyncio.sleep(0.001)

    async def test():
        async with walled(tmp_path) as (session, arrived):
            head = b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n"
            first = asyncio.create_task(raw(session, head, b" " * 899))
            await until_free(101)
            async with session.post("/v2/models/a/infer", data=b" " * 900) as response:
                assert response.status == 503
                assert "ask again" in (await response.json())["error"]
            first.cancel()
            await until_free(1000)
            async with session.post(
                "/v2/models/a/infer", data=b'"' + b" " * 898 + b'"'
            ) as response:
                assert response.status == 200
            assert len(arrived) == 1

    asyncio.run(test())


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(proxy, "BODY_S", 0.2)

    async def test():
        async with walled(tmp_path) as (session, arrived):
            head = b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1"
            answer = await raw(session, head)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert not arrived

    asyncio.run(test())


@pytest.mark.parametrize("target", ["*", "http://a/v2", "/v2#/v2/models/a/infer", "/v2/\xff"])
def test_an_address_is_a_path(tmp_path, target):
    async def test():
        async with walled(tmp_path) as (session, arrived):
            answer = await raw(
                session,
                f"OPTIONS {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode(),
            )
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
            assert not arrived

    asyncio.run(test())


def test_tensors_may_follow_json_where_they_are_read(tmp_path):
    async def test():
        async with walled(tmp_path) as (session, arrived):
            headers = {"Inference-Header-Content-Length": "2"}
            for path, status in (("/v2/models/a/infer", 200), ("/v2/models/a/generate", 400)):
                body = b"{}" + b"[" * 500
                async with session.post(path, data=body, headers=headers) as response:
                    assert response.status == status
            ((_, _, got, body),) = arrived
            assert (got["Inference-Header-Content-Length"], body) == ("2", b"{}" + b"[" * 500)

    asyncio.run(test())


def test_the_request_of_a_caller_who_has_gone_is_cancelled(tmp_path):
    async def test():
        asked, tries = asyncio.Event(), []

        async def behind(request):
            if request.path.endswith("infer"):
                asked.set()
                await asyncio.Event().wait()
            tries.append(request)
            finish = json.dumps({"cancelled": int(len(tries) > 1)})  # it overtakes the request
            return web.json_response({"text": "", "finish": finish})

        async with walled(tmp_path, behind) as (session, arrived):
            call = asyncio.create_task(session.post(f"{proxy.ONE_ANSWER}infer", data=b"{}"))
            await asked.wait()
            call.cancel()
            while len(arrived) < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(2 * proxy.CANCEL_PAUSE_S)
        (_, _, headers, _), (method, path, own, body), _ = arrived
        assert (method, path) == ("POST", proxy.CANCEL.path)
        assert json.loads(body) == {CANCEL: headers[proxy.CANCEL_HEADER]}
        assert proxy.CANCEL_HEADER not in own

    asyncio.run(test())


@pytest.mark.parametrize(
    ("path", "given", "is_added"),
    [
        ("generate", {"prompt": "a {"}, True),
        ("versions/1/generate?a", {"prompt": "cancel_key"}, True),
        ("generate", {"prompt": "a", "cancel_key": "mine"}, False),
        ("generate", {"cancel": "mine"}, False),
        ("generate", {}, False),
        ("generate", [1], False),
        ("generate_stream", {"prompt": "a"}, False),
    ],
)
def test_a_key_is_in_the_json_where_triton_forwards_no_header(tmp_path, path, given, is_added):
    async def test():
        async with walled(tmp_path) as (session, arrived):
            body = b" \n" + json.dumps(given).encode()
            async with session.post(f"{proxy.ONE_ANSWER}{path}", data=body) as response:
                assert response.status == 200
            ((_, _, _, got),) = arrived
        if not is_added:
            assert got == body
            return
        key, found = json.loads(got).pop("cancel_key"), json.loads(got)
        assert {**given, "cancel_key": key} == found
        assert len(key) == 32

    asyncio.run(test())


@pytest.mark.parametrize("path", ["generate", "generate_stream", "versions/1/gener%61te?a"])
def test_who_asks_is_in_the_json_where_triton_forwards_no_header(tmp_path, path):
    async def test():
        async with walled(tmp_path, caller_header="X-Caller") as (session, arrived):
            url = URL(f"/v2/models/instructblip/{path}", encoded=True)

            async def post(given, *headers):
                async with session.post(url, json=given, headers=CIMultiDict(headers)) as response:
                    return response.status

            one = ("x-caller", 'a "b"\\')
            assert await post({"prompt": "c"}) == 200
            assert await post({"prompt": "c"}, one) == 200
            assert await post({"prompt": "c", "X-CALLER": "d"}) == 400
            assert await post({"prompt": "c", "x-caller": "d"}, one) == 400
            assert await post({"prompt": "c"}, one, ("x-caller", "d")) == 400
            got = [json.loads(body) for *_, body in arrived]
            assert got == [{"prompt": "c"}, {"x-caller": one[1], "prompt": "c"}]

    asyncio.run(test())


def test_the_wall_knows_the_names_of_the_wire():
    assert f"/v2/models/{UNARY}/" == proxy.ONE_ANSWER
    assert CANCEL_KEY == proxy.CANCEL_HEADER
