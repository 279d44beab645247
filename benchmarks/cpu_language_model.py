"""`python -m benchmarks.cpu_language_model`: a language model on a CPU, engine against engine.

The model is a LLaMA with random weights, made here; its size is chosen by options. For blocks of
32 and of 128 weights: `batched_decoder` over slots on ONNX Runtime and on OpenVINO, and OpenVINO's
own way, the portable `decoder` with its caches as the model's state. Each way is a process of its
own, since the threads of one would wait busily beside the other's, and they take turns. Time is
that of the processor, of all threads, which other programs do not change, and on the clock.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.batching import random_checkpoint
from benchmarks.measure import save_figures
from iblip.engines.language_model.onnx.decoder_only import DecoderOnly, Rows
from iblip.engines.language_model.onnx.opening import open_graphs
from iblip.engines.onnxruntime.providers import CPU
from iblip.engines.onnxruntime.session import available_cores
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.quantisation.options import QuantisationOptions
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries

AT_ONCE = (1, 4, 8, 16)
PROMPT = 64
"""Positions of a prompt, and before the timed step."""

BLOCKS = (32, 128)
ROUNDS = 3
REPEATS = 7

Work = Callable[[], object]


@click.command()
@click.option("--hidden", default=2048, show_default=True)
@click.option("--mlp", default=5504, show_default=True)
@click.option("--layers", default=22, show_default=True)
@click.option("--heads", default=16, show_default=True)
@click.option("--vocabulary", default=32000, show_default=True)
@click.option("--threads", default=available_cores(), show_default="one per core")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Made here if it is missing.")
@click.option("--measure", nargs=2, hidden=True)
def main(
    threads: int, checkpoint: Path | None, measure: tuple[str, str] | None, **shape: int
) -> None:
    """Print milliseconds of a prompt and of steps, by engine, and save them in results.json."""
    quiet_libraries()
    if measure:
        click.echo(json.dumps(times(WAYS[measure[0]](Path(measure[1]), threads))))
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        source = checkpoint or Path(scratch) / "random-llama"
        if not source.exists():
            random_checkpoint(source, **shape)
        figures: dict[str, Any] = {"model": shape, "threads": threads}
        for block_size in BLOCKS:
            options = BuildOptions(
                source=ModelSource(model=str(source)),
                output=Path(scratch) / str(block_size),
                precision="language_model=int4",
                quantisation=QuantisationOptions(block_size=block_size),
                verification=None,
            )
            figures[f"blocks of {block_size}"] = compare(build(options), threads)
        click.echo(json.dumps(figures, indent=2))
        save_figures("cpu_language_model", figures)


def compare(directory: Path, threads: int) -> dict[str, Any]:
    """Every way over one build, in turns: by what is run, the medians of its rounds."""
    rounds: dict[str, list[Any]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, found in rounds.items():
            command = [sys.executable, "-m", "benchmarks.cpu_language_model"]
            command += ["--threads", str(threads), "--measure", way, str(directory)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(text.splitlines()[-1]))
    return {
        way: {
            work: {
                key: round(statistics.median(one[work][key] for one in found), 1)
                for key in ("cpu_ms", "ms")
            }
            for work in found[0]
        }
        for way, found in rounds.items()
    }


def times(works: Mapping[str, Work]) -> dict[str, dict[str, float]]:
    """Medians of processor time and time on the clock, by what is run."""
    figures = {}
    for name, work in works.items():
        for _ in range(2):
            work()
        taken = []
        for _ in range(REPEATS):
            started = time.process_time(), time.perf_counter()
            work()
            taken.append((time.process_time() - started[0], time.perf_counter() - started[1]))
        cpu, clock = (statistics.median(each) * 1e3 for each in zip(*taken, strict=True))
        figures[name] = {"cpu_ms": cpu, "ms": clock}
    return figures


def over_slots(directory: Path, threads: int, *, openvino: bool) -> Mapping[str, Work]:
    """`batched_decoder` as the engine runs it: a prompt into a slot, and steps of many slots."""
    manifest = Manifest.read(directory)
    graphs = open_graphs(directory, manifest, None if openvino else CPU, threads=threads)
    facts = manifest.language_model
    model = DecoderOnly(graphs, facts, slots=max(AT_ONCE), positions=4 * PROMPT)

    def prompt() -> None:
        rows = Rows(model, 1, PROMPT)
        rows.ids[:] = np.arange(PROMPT) + 5
        rows.positions[0], rows.total[0] = np.arange(PROMPT), PROMPT
        rows.run(0)

    def step(count: int) -> None:
        rows = model.rows(count)
        rows.ids[:], rows.positions[:], rows.total[0] = 7, PROMPT, PROMPT + 1
        rows.run(0)

    return {"prompt": prompt} | {f"step of {n}": partial(step, n) for n in AT_ONCE}


def stateful(directory: Path, threads: int) -> Mapping[str, Work]:
    """The portable `decoder` as OpenVINO would run it by itself: caches are its state."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    manifest = Manifest.read(directory)
    record = manifest.components["language_model"]
    model = openvino.Core().read_model(directory / record.graphs["decoder"].path)
    past = [
        spec.name
        for spec in record.graphs["decoder"].contract.inputs
        if spec.name.startswith("past_")
    ]
    pairs = {name: name.replace("past_", "present_") for name in past}
    apply_make_stateful_transformation(model, pairs)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": record.quantisation["block_size"],
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    facts = manifest.language_model

    def run(count: int, sequence: int, before: int) -> None:
        request.infer(
            {
                "inputs_embeds": np.full((count, sequence, facts.hidden_size), 0.02, np.float32),
                "attention_mask": np.ones((count, before + sequence), np.int64),
                "position_ids": np.tile(np.arange(before, before + sequence), (count, 1)),
            }
        )

    def empty(count: int) -> None:
        nothing = np.zeros((count, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
        for state in request.query_state():
            state.state = openvino.Tensor(nothing)

    def prompt() -> None:
        empty(1)
        run(1, PROMPT, 0)

    lengths = dict.fromkeys(AT_ONCE, 0)

    def step(count: int) -> None:
        if not lengths[count]:
            empty(count)
            run(count, PROMPT, 0)
            lengths[count] = PROMPT
        run(count, 1, lengths[count])
        lengths[count] += 1

    return {"prompt": prompt} | {f"step of {n}": partial(step, n) for n in AT_ONCE}


WAYS: Mapping[str, Callable[[Path, int], Mapping[str, Work]]] = {
    "ONNX Runtime": partial(over_slots, openvino=False),
    "OpenVINO": partial(over_slots, openvino=True),
    "OpenVINO alone": stateful,
}


if __name__ == "__main__":
    main()
