"""The vLLM end of the pipe: a script that runs under vLLM's own Python and serves one engine.

It imports nothing of this project, which that Python does not have: only vLLM, torch and the
standard library, and only the latter before `main` runs. The engine's end is `process.py`, which
imports the framing from here.

A message is a JSON object with a body of raw bytes, empty in most messages. Into the worker:

    {"kind": "open", "engine": {…}}                  first; the arguments of vLLM's engine
    {"kind": "generate", "id", "token_ids", "visual": [images, rows, hidden],
     "starts": [position, …], "params": {…}}         body: the visual prompt, float32
    {"kind": "abort", "id"}                          ends this request

Out of the worker:

    {"kind": "ready", "vllm": version}
    {"kind": "tokens", "id", "tokens", "logprobs", "finished"}
    {"kind": "failed", "id", "error"}                `id` null: the worker cannot go on

The worker ends when its input does, and ends its process group: vLLM's engine is a process of its
own, and so is each of its shares of a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

SIZES = struct.Struct(">II")
"""The start of a message: the sizes in bytes of its header and of its body."""

SHUTDOWN_S = 8.0
"""How long vLLM may take to shut down by itself, in seconds, before it is killed."""

HEALTH_S = 0.5
"""The interval, in seconds, at which vLLM is asked whether it still runs."""


def write_message(stream: IO[bytes], header: Mapping[str, Any], body: bytes = b"") -> None:
    """Writes one message. Raises `OSError` if the other end is closed."""
    text = json.dumps(header).encode()
    stream.write(SIZES.pack(len(text), len(body)) + text + body)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Reads the next message; `None` at the end of the stream, even within a message."""
    start = stream.read(SIZES.size)
    if len(start) < SIZES.size:
        return None
    header_size, body_size = SIZES.unpack(start)
    data = stream.read(header_size + body_size)
    if len(data) < header_size + body_size:
        return None
    return json.loads(data[:header_size]), data[header_size:]


class Worker:
    """Serves one vLLM engine over two streams.

    Args:
        source: messages in.
        target: messages out.
    """

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._source, self._target = source, target
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()
        self._llm: Any = None

    async def run(self) -> None:
        """Serves from the first message to the end of the input.

        Raises:
            Exception: vLLM could not be started, or has died; it has been reported.
        """
        opening = read_message(self._source)
        if opening is None:
            return
        try:
            self._llm = self._open(opening[0]["engine"])
            await self._serve()
        except Exception as error:
            self._send({"kind": "failed", "id": None, "error": _describe(error)})
            raise
        finally:
            if self._llm is not None:
                self._llm.shutdown()

    def _open(self, arguments: Mapping[str, Any]) -> Any:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**_for_device(arguments)))
        self._send({"kind": "ready", "vllm": vllm.__version__})
        return llm

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        read = threading.Thread(target=self._read, args=(loop,), name="read", daemon=True)
        read.start()
        while not self._ended.is_set():
            await self._llm.check_health()  # raises once vLLM's own process has died
            try:
                await asyncio.wait_for(self._ended.wait(), HEALTH_S)
            except TimeoutError:
                continue

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while (message := read_message(self._source)) is not None:
            loop.call_soon_threadsafe(self._take, *message)
        # Even if the loop is stuck, this process and what it started must not outlive its parent.
        killer = threading.Timer(SHUTDOWN_S, _kill_group)
        killer.daemon = True
        killer.start()
        loop.call_soon_threadsafe(self._ended.set)

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        number = header["id"]
        if header["kind"] == "generate":
            task = asyncio.create_task(self._generate(header, body))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif number in self._tasks:
            self._tasks[number].cancel()  # vLLM frees a request whose reader is cancelled

    async def _generate(self, header: Mapping[str, Any], body: bytes) -> None:
        number = header["id"]
        try:
            prompt, params = _build_prompt(header, body), _build_params(header["params"])
            async for output in self._llm.generate(prompt, params, str(number)):
                self._send(_build_report(number, output))
        except Exception as error:
            if not self._llm.errored:  # otherwise vLLM itself failed, which `_serve` reports
                self._send({"kind": "failed", "id": number, "error": _describe(error)})

    def _send(self, header: Mapping[str, Any]) -> None:
        write_message(self._target, header)


def _for_device(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's arguments for this device. On a CPU it also sets environment variables.

    On a GPU vLLM is told how much memory it may take, or itself finds what is left for keys and
    values. On a CPU it would take nearly all memory, so it gets a computed size. There it would
    also compile small functions when a request first needs them, which blocks all others for a
    minute; and it expects a NUMA node for each share of a model, of which a machine may have too
    few.
    """
    from vllm.platforms import current_platform

    arguments = dict(arguments)
    kv_bytes, threads = arguments.pop("cpu_kv_cache_bytes"), arguments.pop("cpu_threads")
    if current_platform.is_cpu():
        shares = arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"]
        cores = len(os.sched_getaffinity(0))
        arguments |= {"kv_cache_memory_bytes": kv_bytes, "enforce_eager": True}
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        os.environ["OMP_NUM_THREADS"] = str(threads or max(1, cores // shares))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return arguments


def _build_prompt(header: Mapping[str, Any], body: bytes) -> Any:
    """vLLM's prompt: embeddings for each image, and token ids for the text, which vLLM embeds.

    This way a penalty can count the text's ids. At the place of an image the ids are the caller's
    placeholders.
    """
    import torch
    from vllm.inputs import embeds_input

    images, rows, hidden = header["visual"]
    token_ids = header["token_ids"]
    embeds = torch.zeros(len(token_ids), hidden)  # [positions, hidden]
    is_token = [True] * len(token_ids)
    # visual: [images, rows, hidden]
    visual = torch.frombuffer(bytearray(body), dtype=torch.float32).view(images, rows, hidden)
    for image, start in zip(visual, header["starts"], strict=True):
        embeds[start : start + rows] = image
        is_token[start : start + rows] = [False] * rows
    return embeds_input(prompt_embeds=embeds, prompt_token_ids=token_ids, is_token_ids=is_token)


def _build_params(fields: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    fields = dict(fields)
    # JSON's keys are strings. Banned words come as token ids, for which vLLM has a private field:
    # the public one takes text and would need a tokenizer here.
    bias = {int(token): value for token, value in fields.pop("logit_bias").items()}
    banned = fields.pop("banned_token_ids")
    return SamplingParams(
        **fields,
        logit_bias=bias or None,
        _bad_words_token_ids=banned or None,
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
    )


def _build_report(number: int, output: Any) -> dict[str, Any]:
    (completion,) = output.outputs
    logprobs = None
    if completion.logprobs is not None:
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = [_build_logprob(token, ranked) for token, ranked in pairs]
    return {
        "kind": "tokens",
        "id": number,
        "tokens": list(completion.token_ids),
        "logprobs": logprobs,
        "finished": output.finished,
    }


def _build_logprob(token: int, logprobs: Mapping[int, Any]) -> list[Any]:
    """`[logprob of the token, [[id, logprob], …]]`: all that vLLM reports, most likely first."""
    ranked = sorted(logprobs.items(), key=lambda item: (-item[1].logprob, item[0]))
    return [logprobs[token].logprob, [[key, value.logprob] for key, value in ranked]]


def _describe(error: BaseException) -> str:
    """The text of an error, and of its cause if it has one."""
    cause = error.__cause__
    text = str(error) or type(error).__name__
    return text if cause is None else f"{text} ({cause})"


def _kill_group() -> None:
    if os.getpgrp() == os.getpid():  # our own group, not that of a shell that started the script
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _take_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output, moved out of reach of vLLM, which prints and has children."""
    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(target, "wb")


async def _serve(streams: Callable[[], tuple[IO[bytes], IO[bytes]]]) -> None:
    await Worker(*streams()).run()


def main() -> int:
    """Serves until the input ends; returns 1 if vLLM failed, which has been reported."""
    try:
        asyncio.run(_serve(_take_streams))
    except Exception:  # vLLM's own message is to stay the end of the log
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # remaining threads of vLLM need not finish
