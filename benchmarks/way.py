"""`way.py WAY TASK CHECKPOINT BUILD`: one way to answer, timed; prints JSON.

`benchmarks.alone` runs this file in a process of its own, with the code of any checkout: so it
imports what all of them have.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

SHORT = 12
"""Characters: the longest answer that counts as short."""

QUESTIONS = 10

CALLS = {"a short answer": 40, "one after another": 5, "together": 5}
"""Timed calls of a process, by task: a question, or `QUESTIONS` of them about one image."""

WARM_UP = 3

Answer = Callable[[Sequence[Example]], object]
"""Answers questions about one image, together where there are several."""


@contextmanager
def transformers(checkpoint: Path, build: Path) -> Iterator[Answer]:
    """transformers, one question after another: padding would change the answers."""
    from benchmarks.reference import Reference

    reference = Reference(checkpoint)
    yield lambda examples: [reference.answer([example]) for example in examples]


@contextmanager
def in_process(checkpoint: Path, build: Path) -> Iterator[Answer]:
    """The build in this process."""
    preprocessing = Manifest.read(build).preprocessing

    def answer(examples: Sequence[Example]) -> None:
        pixels = pixels_from_image(examples[0].image, preprocessing)
        for generation in [pipeline.submit(pixels, example.prompt) for example in examples]:
            generation.result()

    with Pipeline(build) as pipeline:
        yield answer


@contextmanager
def through_triton(checkpoint: Path, build: Path) -> Iterator[Answer]:
    """The build in Triton, asked by this process."""

    def ask(example: Example) -> object:
        return client.ask(example.image, example.prompt)

    def answer(examples: Sequence[Example]) -> None:
        if len(examples) == 1:
            ask(examples[0])
        else:
            list(pool.map(ask, examples))

    with (
        TritonServer(build / REPOSITORY) as server,
        Client(server.grpc_url) as client,
        ThreadPoolExecutor(QUESTIONS) as pool,
    ):
        yield answer


WAYS: Mapping[str, Callable[[Path, Path], AbstractContextManager[Answer]]] = {
    "transformers": transformers,
    "in process": in_process,
    "through Triton": through_triton,
}


def questions(task: str, checkpoint: Path) -> Iterator[list[Sequence[Example]]]:
    """What each call asks, in one part or several; no image is of two calls."""
    examples = read_examples(checkpoint / "examples")
    prompts = list(dict.fromkeys(example.prompt for example in examples))[:QUESTIONS]
    for example in examples:
        about_it = [replace(example, prompt=prompt) for prompt in prompts]
        if task == "together":
            yield [about_it]
        elif task == "one after another":
            yield [[one] for one in about_it]
        elif example.answer and len(example.answer) <= SHORT:
            yield [[example]]


def main(way: str, task: str, checkpoint: Path, build: Path) -> dict[str, Any]:
    """The seconds of each call, and `processor_s`, which all processes took for one."""
    asked = questions(task, checkpoint)
    with WAYS[way](checkpoint, build) as answer:

        def call() -> None:
            for part in next(asked):
                answer(part)

        for _ in range(WARM_UP):
            call()
        before, seconds = processor_s(), []
        for _ in range(CALLS[task]):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds, "processor_s": (processor_s() - before) / len(seconds)}


def processor_s() -> float:
    """Seconds of processors that this process and those below it have taken."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in processes)


if __name__ == "__main__":
    way, task, *paths = sys.argv[1:]
    print(json.dumps(main(way, task, *map(Path, paths))))
