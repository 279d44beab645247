"""Thousands of requests through Triton: a tenth cancelled in mid-stream, a tenth hostile.

Every other answer must be the one that the same request got alone, in this process, beforehand.
Memory is read all along; at the end no slot may be taken.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.builds import build
from benchmarks.hostile import Target
from benchmarks.served import idle_metrics, serve
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import AsyncClient, CancelledError
from iblip.serving.client.messages import KeepAlive, channel_options, infer_request
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.client.protocol import Service
from iblip.serving.wire.names import MODEL

REQUESTS = 2000
AT_ONCE = 16
DIFFERENT = 96
"""Questions that are asked again and again, each with options of its own."""

LONG = 200
"""Tokens of an answer that is cancelled after its first text."""

SAMPLE_S = 0.5

Message = Any
"""One of Triton's protobuf messages, which have no types to check against."""

OPTIONS: Sequence[Mapping[str, Any]] = (
    {},
    {"max_new_tokens": 3},
    {"min_new_tokens": 40, "max_new_tokens": 40, "logprobs": 2},
    {"temperature": 1.0, "seed": 3, "max_new_tokens": 24},
    {"temperature": 2.0, "top_k": 40, "seed": 4, "n": 3, "max_new_tokens": 16},
    {"num_beams": 4, "n": 2, "max_new_tokens": 16},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True, "max_new_tokens": 16},
    {"min_new_tokens": 30, "max_new_tokens": 30, "no_repeat_ngram_size": 3, "stop": ("zz",)},
)


def _parameter(name: str, value: str | int | float) -> Callable[[Message], None]:
    kinds = {str: "string_param", int: "int64_param", float: "double_param"}
    return lambda request: setattr(request.parameters[name], kinds[type(value)], value)


def _prompt(data: bytes) -> Callable[[Message], None]:
    def change(request: Message) -> None:
        request.raw_input_contents[1] = len(data).to_bytes(4, "little") + data

    return change


def _fewer_rows(request: Message) -> None:
    request.inputs[0].shape[1] -= 1


def _other_dtype(request: Message) -> None:
    request.inputs[0].datatype = "INT8"


def _no_prompt(request: Message) -> None:
    del request.inputs[1], request.raw_input_contents[1]


def _replaced(message: Message) -> Callable[[Message], None]:
    return lambda request: request.CopyFrom(message)


MALFORMED: Mapping[str, tuple[Callable[[Message], None], str]] = {
    "an unknown option": (_parameter("temprature", 1.0), "OptionError"),
    "an option out of range": (_parameter("top_p", 1.5), "OptionError"),
    "an option of another type": (_parameter("max_new_tokens", "many"), "OptionError"),
    "no JSON": (_parameter("stop", "["), "OptionError"),
    "more beams than slots": (_parameter("num_beams", 60), "OptionError"),
    "a token that is none": (_parameter("stop_token_ids", "[99999999]"), "OptionError"),
    "no priority": (_parameter("priority_class", "urgent"), "OptionError"),
    "JSON that is too deep": (_parameter("stop", "[" * 100_000), "OptionError"),
    "a number of 5,000 digits": (_parameter("logit_bias", "9" * 5000), "OptionError"),
    "a million tokens to stop at": (
        _parameter("stop_token_ids", str([5] * 1_000_000)),
        "OptionError",
    ),
    "a prompt of a megabyte": (_prompt(b"digit " * 170_000), "InputError"),
    "an empty prompt": (_prompt(b" "), "InputError"),
    "a prompt that is not UTF-8": (_prompt(b"\xff\xfe"), "InputError"),
    "a prompt that is too long": (_prompt(b"digit " * 5000), "InputError"),
    "an image of another size": (_fewer_rows, "unexpected shape"),
    "an image of another type": (_other_dtype, "data-type"),
    "a missing input": (_no_prompt, "prompt"),
}
"""By fault: how to give a request that fault, and what the refusal must say."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Something to ask, and the answer that it has; pixels `[images, height, width, 3]`."""

    pixels: npt.NDArray[np.uint8]
    prompt: str
    options: GenerationOptions
    answer: Answer


def main(checkpoint: Path, scratch: Path, *, requests: int = REQUESTS) -> dict[str, Any]:
    """Counts, memory, and what is left in the engine."""
    directory = build(checkpoint, scratch)
    questions = questions_of(directory, read_examples(checkpoint / "examples"))
    chance = random.Random(11)
    tenth = requests // 10
    kinds = ["cancelled"] * tenth + ["hostile"] * tenth
    kinds += ["answered"] * (requests - len(kinds))
    chance.shuffle(kinds)
    with serve(directory) as server:
        soak = Soak(server.grpc_url, questions, chance, Manifest.read(directory))
        memory = Memory(server.pid)
        counts, seconds = asyncio.run(soak.run(kinds, memory))
        left = idle_metrics(server)
        again = asyncio.run(soak.run(["answered"] * len(questions), memory))[0]
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(counts.items())),
        "answered_afterwards": dict(again),
        "memory": memory.figures(),
        "left_in_the_engine": {
            name: left[f"iblip_{name}"]
            for name in ("slots_used", "requests_running", "requests_waiting")
        },
        "ended": {
            name.partition("/")[2]: value for name, value in left.items() if "/" in name and value
        },
    }


def questions_of(
    directory: Path,
    examples: Sequence[Example],
    options: Sequence[Mapping[str, Any]] = OPTIONS,
    images: Sequence[int] = (1,),
) -> list[Question]:
    """Questions with their answers, each given alone, in this process.

    Args:
        directory: of the build.
        examples: whose images and prompts are used.
        options: of the first question, of the second, and so on, again and again.
        images: how many images these have.
    """
    preprocessing, questions = Manifest.read(directory).preprocessing, []
    with Pipeline(directory) as pipeline:
        for number in range(DIFFERENT):
            example = examples[number % len(examples)]
            settled = GenerationOptions(**options[number % len(options)])
            count = images[number // len(options) % len(images)]
            pixels = np.stack(
                [
                    pixels_from_image(examples[(number + k) % len(examples)].image, preprocessing)
                    for k in range(count)
                ]
            )
            answer = pipeline.answer(pixels, example.prompt, settled)
            questions.append(
                Question(pixels=pixels, prompt=example.prompt, options=settled, answer=answer)
            )
    return questions


class Soak:
    """Asks one server many things at once.

    Args:
        url: of the server.
        questions: with their answers.
        chance: chooses among them.
        manifest: of the build.
    """

    def __init__(
        self,
        url: str,
        questions: Sequence[Question],
        chance: random.Random,
        manifest: Manifest,
    ) -> None:
        self._url = url
        self._questions = questions
        self._chance = chance
        target = Target(urls={}, manifest=manifest, pixels=questions[0].pixels)
        step = target.step("qformer", batch=1, token=99999)
        self._hostile = {**MALFORMED, "a step asked": (_replaced(step), "has the token 99999")}
        self._ways = {
            "answered": self._ask,
            "cancelled": self._cancel,
            "hostile": self._send_hostile,
        }

    async def run(self, kinds: Sequence[str], memory: Memory) -> tuple[Counter[str], float]:
        """One request of each kind, some at once; what became of them, and the seconds."""
        counts: Counter[str] = Counter()
        limit, started = asyncio.Semaphore(AT_ONCE), time.perf_counter()
        async with AsyncClient(self._url, timeout=ONE_ATTEMPT, retries=0) as client:

            async def send(kind: str) -> None:
                async with limit:
                    counts[await self._ways[kind](client)] += 1

            watching = asyncio.create_task(memory.watch())
            await asyncio.gather(*(send(kind) for kind in kinds))
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        return counts, time.perf_counter() - started

    async def _ask(self, client: AsyncClient) -> str:
        asked = self._chance.choice(self._questions)
        try:
            stream = await client.stream(asked.pixels, asked.prompt, options=asked.options)
            text = "".join([piece async for piece in stream])
            answer = await stream.answer()
        except Exception as error:  # counted as lost
            return f"LOST: {type(error).__name__}: {error}"
        right = is_same(answer, asked.answer) and text == answer.text
        return "right" if right else f"WRONG: {asked.prompt!r}, {asked.options}"

    async def _cancel(self, client: AsyncClient) -> str:
        asked = self._chance.choice(self._questions)
        options = GenerationOptions(min_new_tokens=LONG, max_new_tokens=LONG, temperature=5.0)
        try:
            stream = await client.stream(asked.pixels, asked.prompt, options=options)
            await anext(stream)
            await stream.cancel()
            await stream.answer()
        except CancelledError:
            return "cancelled"
        except Exception as error:  # as above
            return f"NOT CANCELLED: {type(error).__name__}: {error}"
        return "ended before it was cancelled"

    async def _send_hostile(self, client: AsyncClient) -> str:
        asked = self._chance.choice(self._questions)
        name = self._chance.choice(list(self._hostile))
        change, refusal = self._hostile[name]
        request = infer_request(
            asked.pixels[:1],
            asked.prompt,
            GenerationOptions(),
            model=MODEL,
            timeout_s=None,
            stream=True,
        )
        change(request)
        async with grpc.aio.insecure_channel(
            self._url, options=channel_options(KeepAlive())
        ) as channel:
            stub = Service(channel)
            call = stub.ModelStreamInfer(request)
            messages = [response.error_message async for response in call]
        refused = len(messages) == 1 and refusal in messages[0]
        return "refused" if refused else f"NOT REFUSED: {name}: {messages[:2]}"


def is_same(answer: Answer, expected: Answer) -> bool:
    """Whether two answers are equal but for their times."""
    return replace(answer, timing=expected.timing) == expected


class Memory:
    """Resident memory of a process and of all below it.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._samples: list[float] = []

    async def watch(self) -> None:
        """Reads it again and again, until the task is cancelled."""
        while True:
            self._samples.append(await asyncio.to_thread(self._mib))
            await asyncio.sleep(SAMPLE_S)

    def figures(self) -> dict[str, float]:
        """Medians, in MiB, after the first fifth of the time and at its end."""
        samples = self._samples
        span = max(1, len(samples) // 10)
        start = len(samples) // 5
        before = statistics.median(samples[start : start + span])
        after = statistics.median(samples[-span:])
        return {
            "after_warm_up_mib": round(before, 1),
            "at_the_end_mib": round(after, 1),
            "most_mib": round(max(samples), 1),
            "growth": round(after / before - 1, 4),
            "samples": len(samples),
        }

    def _mib(self) -> float:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20
