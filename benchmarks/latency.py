"""Median latency of a short answer: transformers, in process, through Triton, in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.builds import build
from benchmarks.measure import in_turns
from benchmarks.reference import Reference
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

ROUNDS = 40
SHORT = 12
"""Characters: the longest answer that counts as short."""


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """A new image and question each round, the same for every way."""
    directory = build(checkpoint, scratch)
    examples = [
        e for e in read_examples(checkpoint / "examples") if e.answer and len(e.answer) <= SHORT
    ]
    reference, preprocessing = Reference(checkpoint), Manifest.read(directory).preprocessing
    with (
        TritonServer(directory / REPOSITORY) as server,
        Client(server.grpc_url, timeout=ONE_ATTEMPT, retries=0) as client,
        Pipeline(directory) as pipeline,
    ):
        ways = {
            "transformers": lambda turn: reference.answer([examples[turn]]),
            "in process": lambda turn: pipeline.answer(
                pixels_from_image(examples[turn].image, preprocessing), examples[turn].prompt
            ),
            "through Triton": lambda turn: client.ask(examples[turn].image, examples[turn].prompt),
        }
        return in_turns(ways, ROUNDS, warm_up=3)
