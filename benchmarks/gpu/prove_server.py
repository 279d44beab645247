"""Serves builds with the real Triton, whose models run on the GPU, and compares its answers.

    python -m benchmarks.gpu.prove_server BUILD… --out FOLDER --seconds 90

Each build is served in turn: seconds until it is ready, the answers that its verification saw asked
through the client, one at a time and several at once.
Facts go to `server.jsonl` in the folder as they are known, the server's log to `<build>.log`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from iblip.engines.language_model.types import Answer
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import AnswerReference
from iblip.export.errors import IblipError
from iblip.serving.client import Client
from iblip.serving.proving.record import Fact
from iblip.serving.proving.subject import (
    NothingToMeasureError,
    Subject,
    differences,
    least_share,
)
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.repository.native import flags_for
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

FACTS = "server.jsonl"

TOGETHER = 8
"""Requests at once."""

READY_S, ANSWER_S = 100.0, 30.0

SHOWN = 3
"""Answers that differ and are shown."""


def serve_and_compare(build: Path, log: Path) -> Iterator[Fact]:
    """Facts of one build, each as soon as it is known.

    Args:
        build: a verified one, whose engines run on a GPU.
        log: file for the server's log.

    Raises:
        IblipError: the build is none, or the server does not start or answer.
        NothingToMeasureError: the build was not verified.
    """
    subject = Subject(directory=build, manifest=Manifest.read(build))
    references = subject.answers("text")
    options = ServerOptions(ready_timeout_s=READY_S, log=log, extra=flags_for(subject.manifest))
    started = time.monotonic()
    with TritonServer(build / REPOSITORY, options) as server:
        yield Fact(name="seconds until the server is ready", value=time.monotonic() - started)
        with Client(server.grpc_url, timeout=ANSWER_S) as client:

            def ask(reference: AnswerReference) -> Answer:
                pixels = [subject.references.pixels[index] for index in reference.images]
                return client.ask(pixels, reference.prompt, options=dict(reference.options))

            yield from _judge(subject, "one at a time", references, list(map(ask, references)))
            with ThreadPoolExecutor(TOGETHER) as pool:
                answers = list(pool.map(ask, references))
            yield from _judge(subject, f"{TOGETHER} at a time", references, answers)


def _judge(
    subject: Subject, how: str, references: Sequence[AnswerReference], answers: Sequence[Answer]
) -> Iterator[Fact]:
    pairs = list(zip(references, answers, strict=True))
    odd = [pair for pair in pairs if tuple(pair[1].token_ids) != pair[0].token_ids]
    yield Fact(
        name=f"the same tokens, {how}, of {len(pairs)} answers",
        value=1 - len(odd) / len(pairs),
        limit=least_share(subject.agreement, len(pairs)),
        sense="least",
    )
    for reference, answer in odd[:SHOWN]:
        yield Fact(name=f"{how}: {reference.name}", value=differences(reference, answer))


@click.command()
@click.argument("builds", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seconds", default=90.0, help="After which no further server is started.")
def main(builds: tuple[Path, ...], out: Path, seconds: float) -> None:
    """Serve each of BUILDS in turn, and write each fact to a file in the folder OUT."""
    end = time.monotonic() + seconds
    with (out / FACTS).open("a", encoding="utf-8") as file:
        for build in builds:
            if time.monotonic() > end:
                break
            for fact in _facts(build, out / f"{build.name}.log"):
                file.write(json.dumps({"build": build.name, **fact.to_json()}) + "\n")
                file.flush()
                print(f"{build.name}: {fact.name}: {fact.value}", flush=True)


def _facts(build: Path, log: Path) -> Iterator[Fact]:
    try:
        yield from serve_and_compare(build, log)
    except (IblipError, NothingToMeasureError) as error:
        yield Fact(name="not served", value=str(error), wrong=True)


if __name__ == "__main__":
    main()
