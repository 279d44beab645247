"""All held-out examples over gRPC, 8 at a time: identical text to in process, none lost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.builds import PRECISIONS, build
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

AT_ONCE = 8


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Figures by precision."""
    examples = read_examples(checkpoint / "examples")
    figures = {}
    for precision in PRECISIONS:
        figures[precision] = _compare(build(checkpoint, scratch, precision), examples)
    return figures


def _compare(directory: Path, examples: list[Example]) -> dict[str, Any]:
    preprocessing = Manifest.read(directory).preprocessing
    with Pipeline(directory) as pipeline:
        started = time.monotonic()
        expected = [
            pipeline.answer(pixels_from_image(e.image, preprocessing), e.prompt).text
            for e in examples
        ]
        in_process_s = time.monotonic() - started
    started = time.monotonic()
    with TritonServer(directory / REPOSITORY) as server:
        ready_s = time.monotonic() - started
        with Client(server.grpc_url) as client, ThreadPoolExecutor(AT_ONCE) as pool:
            started = time.monotonic()
            answers = list(pool.map(lambda e: _ask(client, e), examples))
            triton_s = time.monotonic() - started
    texts = [text for text, _ in answers]
    return {
        "examples": len(examples),
        "answered": sum(text is not None for text in texts),
        "identical_to_in_process": sum(a == b for a, b in zip(texts, expected, strict=True)),
        "deltas_in_order": sum(joined for _, joined in answers),
        "right": sum(e.is_right(text) for text, e in zip(texts, examples, strict=True)),
        "start_to_ready_s": round(ready_s, 2),
        "seconds_in_process": round(in_process_s, 1),
        "seconds_triton_8_at_once": round(triton_s, 1),
    }


def _ask(client: Client, example: Example) -> tuple[str, bool]:
    """The answer, and whether its deltas, joined in order, are that answer."""
    with client.stream(example.image, example.prompt) as stream:
        deltas = list(stream)
        return stream.answer.text, "".join(deltas) == stream.answer.text
