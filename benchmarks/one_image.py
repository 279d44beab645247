"""Ten questions about one image: encoded once, and the time against transformers."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from benchmarks.measure import in_turns
from benchmarks.reference import Reference
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

QUESTIONS = 10
ROUNDS = 5


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Runs of the vision encoder by Triton's own counters, then times in turns."""
    directory = build(checkpoint, scratch)
    examples = read_examples(checkpoint / "examples")
    prompts = list(dict.fromkeys(example.prompt for example in examples))[:QUESTIONS]
    with (
        TritonServer(directory / REPOSITORY) as server,
        Client(server.grpc_url, timeout=ONE_ATTEMPT, retries=0) as client,
        Pipeline(directory) as pipeline,
    ):
        before = _runs(server.metrics_url)
        for prompt in prompts:
            client.ask(examples[0].image, prompt)
        runs = _runs(server.metrics_url) - before
        times = _times(checkpoint, directory, client, pipeline, examples, prompts)
    return {"questions": len(prompts), "vision_encoder_runs": runs, "ten_questions": times}


def _times(
    checkpoint: Path,
    directory: Path,
    client: Client,
    pipeline: Pipeline,
    examples: list[Example],
    prompts: list[str],
) -> dict[str, Any]:
    reference, preprocessing = Reference(checkpoint), Manifest.read(directory).preprocessing

    def image(turn: int) -> Path:
        return examples[1 + turn].image  # a new one each round, so none is cached

    def transformers(turn: int) -> None:
        for prompt in prompts:
            reference.answer([replace(examples[0], image=image(turn), prompt=prompt)])

    def in_process(turn: int) -> None:
        pixels = pixels_from_image(image(turn), preprocessing)
        for prompt in prompts:
            pipeline.answer(pixels, prompt)

    def through_triton(turn: int) -> None:
        for prompt in prompts:
            client.ask(image(turn), prompt)

    ways = {
        "transformers": transformers,
        "in process": in_process,
        "through Triton": through_triton,
    }
    return in_turns(ways, ROUNDS, warm_up=1)


def _runs(metrics_url: str) -> int:
    """Executions of the vision encoder so far, as the server counts them."""
    with urllib.request.urlopen(metrics_url) as response:
        text = response.read().decode()
    pattern = r'nv_inference_exec_count\{model="vision_encoder"[^}]*\} (\d+)'
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
