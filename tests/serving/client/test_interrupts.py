"""Ctrl-C while a client waits: the client stays usable."""

import subprocess
import sys
import threading
from io import BytesIO

import pytest
from PIL import Image

from iblip.serving.client import Client
from iblip.serving.client.errors import CancelledError
from iblip.serving.client.interrupts import Responses, apart
from tests.serving.client.scripted import Server, hang, say

INTERRUPTED = """
import os, random, signal, sys, threading, time
from PIL import Image
from iblip import Client

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, in the background
image, client = Image.new("RGB", (8, 8)), Client(sys.argv[1])
client.contract()
for _ in range(10):
    delay_s = random.uniform(0.02, 0.1)
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            client.ask(image, "?")
    except KeyboardInterrupt:
        print(client.ask(image, "?", timeout=20).text, flush=True)
"""

FORKED = """
import os
from iblip.serving.client import interrupts

interrupts.apart(int)
while not interrupts._idle:  # until the thread waits for the next call
    pass
child = os.fork()
interrupts.apart(int)
if child:
    print(os.waitpid(child, 0)[1])
"""


def test_a_client_answers_after_ctrl_c():
    with Server() as server:
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, server.url],
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.stdout.split() == ["yes"] * 10, done.stderr


def test_the_main_thread_stays_out_of_grpc(monkeypatch):
    callers = []
    with Server([say("a", "b")]) as server, Client(server.url) as client:
        for name in ("ModelConfig", "ModelStreamInfer"):
            call = getattr(client._service, name)
            monkeypatch.setattr(
                client._service,
                name,
                lambda *args, call=call, **how: (
                    callers.append(threading.current_thread()),
                    call(*args, **how),
                )[1],
            )
        assert "".join(client.stream(bytes_of_image(), "?")) == "ab"
    assert len(callers) == 2
    assert threading.main_thread() not in callers


def test_what_the_other_thread_raises_is_raised_here():
    def fail():
        raise KeyError(threading.current_thread())

    with pytest.raises(KeyError) as caught:
        apart(fail)
    assert caught.value.args != (threading.main_thread(),)


def test_the_main_threads_calls_share_a_few_threads():
    callers = {apart(threading.current_thread) for _ in range(50)}
    callers |= {next(Responses(lambda: iter([threading.current_thread()]))) for _ in range(50)}
    assert len(callers) < 50


def test_a_call_in_a_forked_process_ends():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n", done.stderr


def test_an_end_stays_an_end():
    responses = Responses(lambda: iter([1, 2]))
    assert [*responses, *responses] == [1, 2]


def test_a_cancelled_answer_ends_at_once():
    with Server([hang]) as server, Client(server.url) as client:
        stream = client.stream(bytes_of_image(), "?")
        threading.Timer(0.2, stream.cancel).start()
        with pytest.raises(CancelledError):
            next(stream)


def bytes_of_image():
    data = BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue()
