"""`python -m benchmarks.prefix_cache`: ten questions about an image, with the cache and without it.

The language model alone: BLIP-2's and MiniGPT-4's demos, and a LLaMA of hidden size 2048 with
random weights in four bits, whose image has 32 positions. Both engines are in one process and are
asked in turns, as other programs slow down both alike; none of their threads waits busily between
runs. No image comes twice. Time is that of the processor and on the clock.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.batching import random_checkpoint
from benchmarks.builds import build
from benchmarks.measure import save_figures
from benchmarks.one_image import APART, TOGETHER
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest, LanguageModelEngine
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.serving.cli.quiet import quiet_libraries

DEMOS = {"blip2-demo-opt": 1, "minigpt4-demo": 1}
"""Images of each request, whose positions are one after another."""

RANDOM, POSITIONS = "random-llama", 32
SHAPE = {"hidden": 2048, "mlp": 5504, "layers": 6, "heads": 16, "vocabulary": 32000}
QUESTIONS = (
    *(
        "What is the colour of it?",
        "Which digit is it?",
        "Where is it then?",
        "How many are there?",
    ),
    *("Is it red?", "Is it large or small?", "Describe the image.", "What do you see there?"),
    *("Is there a 3?", "Is it blue?"),
)
TOKENS = 4
"""Of each answer: short, as most answers to a question about an image are."""


@click.command()
@click.option("--rounds", default=40, show_default=True, help="Of the demos; a fifth of the other.")
def main(rounds: int) -> None:
    """Print milliseconds of ten questions and the ratio, and save them in results.json."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as name:
        scratch = Path(name)
        figures = {
            demo: compare(build(DEMO.parent / demo, scratch), images, rounds)
            for demo, images in DEMOS.items()
        }
        checkpoint = random_checkpoint(scratch / RANDOM, **SHAPE)
        directory = build(checkpoint, scratch, "language_model=int4")
        queries = Manifest.read(directory).language_model.num_query_tokens
        figures[RANDOM] = compare(directory, POSITIONS // queries, rounds // 5)
    click.echo(json.dumps(figures, indent=2))
    save_figures("prefix_cache", figures)


def compare(directory: Path, images: int, rounds: int) -> dict[str, Any]:
    """By way of asking: medians with the cache and without it, and their ratio."""
    manifest, rng = Manifest.read(directory), np.random.default_rng(0)
    facts = manifest.language_model
    shape = (images, facts.num_query_tokens, facts.hidden_size)
    taken: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        engines = {
            on: stack.enter_context(
                closing(open_engine(directory, manifest, limits=EngineLimits(prefix_cache=on)))
            )
            for on in (True, False)
        }
        for turn in range(-2, rounds):
            for way in (APART, TOGETHER):
                image = rng.standard_normal(shape).astype(np.float32)
                for on in (True, False) if turn % 2 else (False, True):
                    seconds = ask(engines[on], image, way)
                    if turn >= 0:
                        taken.setdefault((way, on), []).append(seconds)
        status = engines[True].status()
    total = status.prompt_tokens + status.cached_prompt_tokens
    return {"cached": round(status.cached_prompt_tokens / total, 3)} | {
        way: _ratio(taken[way, True], taken[way, False]) for way in (APART, TOGETHER)
    }


def ask(engine: LanguageModelEngine, image: Any, way: str) -> tuple[float, float]:
    """Seconds of the processor, and on the clock."""
    options = GenerationOptions(max_new_tokens=TOKENS)
    requests = [
        GenerationRequest(prompt=q, visual_prompt=image, options=options) for q in QUESTIONS
    ]
    groups: Iterable[Sequence[GenerationRequest]] = [requests]
    if way == APART:
        groups = [[request] for request in requests]
    started = time.process_time(), time.perf_counter()
    for group in groups:
        for generation in [engine.submit(request) for request in group]:
            generation.result()
    return time.process_time() - started[0], time.perf_counter() - started[1]


def _ratio(
    cached: Sequence[tuple[float, float]], without: Sequence[tuple[float, float]]
) -> dict[str, float]:
    figures = {}
    for index, name in enumerate(("processor", "clock")):
        with_it, without_it = (
            statistics.median(seconds[index] for seconds in one) for one in (cached, without)
        )
        figures[f"{name}_ms"] = round(with_it * 1e3, 1)
        figures[f"{name}_ms_without"] = round(without_it * 1e3, 1)
        figures[f"{name}_ratio"] = round(with_it / without_it, 3)
    return figures


if __name__ == "__main__":
    main()
