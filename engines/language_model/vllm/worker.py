"""vLLM's end of the pipe: a script that runs under vLLM's own Python and serves one engine.

It imports nothing of this project, which that Python does not have: vLLM, torch and the standard
library only, and nothing but the latter before `main` runs. The engine's end is `process.py`, which
takes the framing from here.

A message is a JSON object with a body of raw bytes, empty in most. Into the worker:

    {"kind": "open", "engine": {…}}                  first; the arguments of vLLM's engine
    {"kind": "generate", "id", "token_ids", "visual": [images, rows, hidden],
     "starts": [position, …], "params": {…}}         body: the visual prompt, float32
    {"kind": "abort", "id"}                          no more of it is wanted

Out of the worker:

    {"kind": "ready", "vllm": version}
    {"kind": "tokens", "id", "tokens", "logprobs", "finished"}
    {"kind": "failed", "id", "error"}                `id` null: nothing can go on

The worker ends when its input does, and takes its process group with it: vLLM's engine is a process
of its own, and each of its shares of a model another.
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
"""What a message begins with: the bytes of its header, and of its body."""

SHUTDOWN_S = 8.0
"""How long vLLM may take to end in good order, in seconds, before it is killed."""

HEALTH_S = 0.5
"""How often vLLM is asked whether it still runs, in seconds, while nobody else would notice."""


def write_message(stream: IO[bytes], header: Mapping[str, Any], body: bytes = b"") -> None:
    """Writes one message. Raises `OSError` where nobody reads any more."""
    text = json.dumps(header).encode()
    stream.write(SIZES.pack(len(text), len(body)) + text + body)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message; `None` at the end, also where it is in the middle of one."""
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
        """From the first message to the end of the input.

        Raises:
            Exception: vLLM cannot be started, or has died; it has been reported.
        """
        opening = read_message(self._source)
        if opening is None:
            return
        try:
            self._llm = self._open(opening[0]["engine"])
            await self._serve()
        except Exception as error:
            self._send({"kind": "failed", "id": None, "error": _told(error)})
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
        # Whatever holds up the loop, this process and what it started must not outlive its parent.
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
            prompt, params = _prompt(header, body), _params(header["params"])
            async for output in self._llm.generate(prompt, params, str(number)):
                self._send(_report(number, output))
        except Exception as error:
            if not self._llm.errored:  # else it is not this request's fault, and `_serve` says so
                self._send({"kind": "failed", "id": number, "error": _told(error)})

    def _send(self, header: Mapping[str, Any]) -> None:
        write_message(self._target, header)


def _for_device(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's arguments as this device takes them, and for a CPU its environment.

    On a GPU vLLM finds by itself how much memory is left for keys and values; on a CPU, where it
    would take nearly all there is, it gets what was worked out for it. There it also compiles
    small functions when a request first needs them, for a minute, in which all others wait; and it
    wants whole NUMA nodes, where a machine may have one for two shares of a model.
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


def _prompt(header: Mapping[str, Any], body: bytes) -> Any:
    """Each image as embeddings, at its place among the text's ids, which vLLM embeds itself.

    So the ids are known where a penalty counts them. In the place of an image they are what the
    caller put there.
    """
    import torch
    from vllm.inputs import embeds_input

    images, rows, hidden = header["visual"]
    token_ids = header["token_ids"]
    embeds, is_token = torch.zeros(len(token_ids), hidden), [True] * len(token_ids)
    visual = torch.frombuffer(bytearray(body), dtype=torch.float32).view(images, rows, hidden)
    for image, start in zip(visual, header["starts"], strict=True):
        embeds[start : start + rows] = image
        is_token[start : start + rows] = [False] * rows
    return embeds_input(prompt_embeds=embeds, prompt_token_ids=token_ids, is_token_ids=is_token)


def _params(fields: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    fields = dict(fields)
    # JSON has strings for keys. Banned words come as token ids, for which vLLM has a private field:
    # the public one takes text, and would want a tokenizer here.
    bias = {int(token): value for token, value in fields.pop("logit_bias").items()}
    banned = fields.pop("banned_token_ids")
    return SamplingParams(
        **fields,
        logit_bias=bias or None,
        _bad_words_token_ids=banned or None,
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
    )


def _report(number: int, output: Any) -> dict[str, Any]:
    (completion,) = output.outputs
    logprobs = None
    if completion.logprobs is not None:
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = [_logprob(token, found) for token, found in pairs]
    return {
        "kind": "tokens",
        "id": number,
        "tokens": list(completion.token_ids),
        "logprobs": logprobs,
        "finished": output.finished,
    }


def _logprob(token: int, found: Mapping[int, Any]) -> list[Any]:
    """`[logprob of the token, [[id, logprob], …]]`, all that vLLM reports, the likeliest first."""
    ranked = sorted(found.items(), key=lambda item: (-item[1].logprob, item[0]))
    return [found[token].logprob, [[key, value.logprob] for key, value in ranked]]


def _told(error: BaseException) -> str:
    """The error, and what it says itself to be caused by."""
    cause = error.__cause__
    text = str(error) or type(error).__name__
    return text if cause is None else f"{text} ({cause})"


def _kill_group() -> None:
    if os.getpgrp() == os.getpid():  # ours, and not that of who started us by hand
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output, out of the reach of vLLM, which prints and has children."""
    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(target, "wb")


async def _serve(streams: Callable[[], tuple[IO[bytes], IO[bytes]]]) -> None:
    await Worker(*streams()).run()


def main() -> int:
    """Serves until the input ends; 1 where vLLM failed, which the other end has been told."""
    try:
        asyncio.run(_serve(_own_streams))
    except Exception:  # what vLLM itself wrote of it is to stay the end of the log
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # what is left of vLLM's threads has nothing more to do
