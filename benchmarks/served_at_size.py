"""`python -m benchmarks.served_at_size`: a model of true size, built and served by Triton here.

Its weights are random (`iblip synthesize`), so only what depends on size is measured: start to
ready, resident memory of every process of the server, time to the first token, tokens per second,
and that as a share of what the memory's read bandwidth allows, measured in between.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.batching import weight_bytes
from benchmarks.measure import read_bandwidth, run, save_figures
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.onnxruntime.session import available_cores
from iblip.export.artifact.manifest import Manifest
from iblip.serving.bench.resident import resident
from iblip.serving.client import Answer, Client
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.memory import memory_of_build
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

PRECISION = "vision_encoder=int8,language_model=int4"

READY_S = 1800.0
"""Seconds that a server may take to load, on a slow disk too."""


@click.command()
@click.option("--model", default="instructblip-vicuna-7b", show_default=True, help="Of the table.")
@click.option("--precision", default=PRECISION, show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Made here if it is missing.")
@click.option("--build", "built", type=click.Path(path_type=Path), help="Likewise.")
@click.option("--tokens", default=32, show_default=True, help="Of every answer.")
@click.option("--rounds", default=3, show_default=True, help="Answers that are timed.")
def main(
    model: str,
    precision: str,
    checkpoint: Path | None,
    built: Path | None,
    tokens: int,
    rounds: int,
) -> None:
    """Print the figures, and keep them in results.json."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        source = checkpoint or Path(scratch) / model
        directory = built or Path(scratch) / "built"
        figures: dict[str, Any] = {"model": model, "precision": precision}
        if not directory.exists():
            if not source.exists():
                words = ["synthesize", model, str(source), "--dtype", "float16"]
                figures["synthesize"] = run(["iblip", "export", *words]).to_json()
            words = ["build", "--model", str(source), "--precision", precision]
            words += ["--no-verify", "--output", str(directory)]
            figures["build"] = run(["iblip", "export", *words]).to_json()
        figures |= serve(directory, tokens, rounds)
    click.echo(json.dumps(figures, indent=2))
    save_figures("served_at_size", figures)


def serve(directory: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Figures of a build behind a real server; one request at a time.

    Args:
        directory: of the build.
        tokens: of every answer.
        rounds: answers that are timed; one more goes before them.
    """
    manifest = Manifest.read(directory)
    graph = manifest.components["language_model"].graphs["batched_decoder"]
    read, planned = weight_bytes(directory / graph.path), memory_of_build(directory, manifest)
    started = time.monotonic()
    options = ServerOptions(ready_timeout_s=READY_S)
    with TritonServer(directory / REPOSITORY, options) as server:
        ready_s = time.monotonic() - started
        ready = resident(server.pid)
        with Client(server.grpc_url, timeout=READY_S) as client:
            turns = [ask(client, manifest, tokens, turn) for turn in range(rounds + 1)][1:]
        answered = resident(server.pid)
    rate = max(turn.rate for turn in turns)
    bandwidth = max(turn.bandwidth for turn in turns)
    return {
        "ready_s": round(ready_s, 1),
        "memory": {
            "planned_least": None if planned is None else planned.least,
            "ready": ready,
            "answered": answered,
        },
        "first_token_s": round(statistics.median(turn.first_s for turn in turns), 2),
        "vision_and_qformer_s": round(statistics.median(turn.vision_s for turn in turns), 2),
        "prefill_s": round(statistics.median(turn.prefill_s for turn in turns), 2),
        "prompt_positions": turns[0].positions,
        "tokens_per_second": round(rate, 2),
        "bytes_a_token": read,
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "share_of_bandwidth": round(rate * read / bandwidth, 3),
    }


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One streamed answer. Times in seconds, rates a second.

    Attributes:
        first_s: from asking to the first piece of text, at the client.
        vision_s, prefill_s: as the server's own timing has them.
        rate: tokens after the first.
        bandwidth: bytes that the machine reads from memory, measured just before.
        positions: of the prompt, image included.
    """

    first_s: float
    vision_s: float
    prefill_s: float
    rate: float
    bandwidth: float
    positions: int


def ask(client: Client, manifest: Manifest, tokens: int, turn: int) -> Turn:
    """Asks about an image that the server has not seen, and reads the answer as it comes."""
    bandwidth = read_bandwidth(available_cores())
    sizes = manifest.preprocessing.height, manifest.preprocessing.width, 3
    pixels = np.random.default_rng(turn).integers(0, 256, sizes, dtype=np.uint8)
    options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens)
    started, first_s = time.perf_counter(), 0.0
    with client.stream(pixels, "What is unusual about this image?", options=options) as pieces:
        for _ in pieces:
            first_s = first_s or time.perf_counter() - started
        answer: Answer = pieces.answer
    timing = answer.timing
    return Turn(
        first_s=first_s,
        vision_s=timing.vision_s,
        prefill_s=timing.prefill_s,
        rate=(answer.completion_tokens - 1) / timing.decode_s,
        bandwidth=bandwidth,
        positions=answer.prompt_tokens,
    )


if __name__ == "__main__":
    main()
