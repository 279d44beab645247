"""`python -m benchmarks.batching`: the language-model engine against the bare graph.

The model is a LLaMA with random weights, made here; its size is chosen by options. For every
precision and number of requests at once: tokens per second of the engine, and of its decoder graph
alone in a loop; at one request the share of the memory's read bandwidth, measured in between.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from benchmarks.measure import RESULTS, read_bandwidth, save_figures
from benchmarks.plots import plot_batching
from iblip.engines.language_model.onnx.decoder_only import DecoderOnly
from iblip.engines.language_model.onnx.engine import OnnxEngine
from iblip.engines.language_model.onnx.opening import open_model
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.onnxruntime.session import available_cores
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.source import ModelSource
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries

AT_ONCE = (1, 2, 4, 8, 16)
PRECISIONS = ("fp32", "int4")
PAST = 64
"""Positions before the first timed token."""

ROUNDS = 3
"""Number of rounds, of which the best counts: what the machine does when nothing else runs."""


@click.command()
@click.option("--hidden", default=2048, show_default=True)
@click.option("--mlp", default=5504, show_default=True)
@click.option("--layers", default=22, show_default=True)
@click.option("--heads", default=16, show_default=True)
@click.option("--vocabulary", default=32000, show_default=True)
@click.option("--tokens", default=24, show_default=True, help="Of every answer.")
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS, show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Made here if it is missing.")
def main(
    tokens: int,
    precisions: Sequence[str],
    checkpoint: Path | None,
    **shape: int,
) -> None:
    """Print tokens per second by the number of requests at once, and save them in results.json."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        source = checkpoint or Path(scratch) / "random-llama"
        if not source.exists():
            random_checkpoint(source, **shape)
        figures: dict[str, Any] = {"model": shape}
        for precision in precisions:
            options = BuildOptions(
                source=ModelSource(model=str(source)),
                output=Path(scratch) / precision,
                precision=f"language_model={precision}",
                verification=None,
            )
            figures[precision] = measure(build(options), tokens)
            click.echo(f"{precision}: {json.dumps(figures[precision])}", err=True)
        click.echo(json.dumps(figures, indent=2))
        save_figures("batching", figures)
        plot_batching(RESULTS.with_name("batching.png"), figures)
        click.echo(f"saved in {RESULTS}, drawn in batching.png beside it", err=True)


def random_checkpoint(
    directory: Path, *, hidden: int, mlp: int, layers: int, heads: int, vocabulary: int
) -> Path:
    """The demo checkpoint's files around a language model of this size."""
    import torch
    import transformers

    source = DEMO.parent / "instructblip-demo-vicuna"
    config: Any = transformers.InstructBlipConfig.from_pretrained(source)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, mlp, layers
    text.num_attention_heads = text.num_key_value_heads = heads
    text.head_dim, text.vocab_size, text.max_position_embeddings = hidden // heads, vocabulary, 2048
    torch.manual_seed(0)
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "examples"))
    model = transformers.InstructBlipForConditionalGeneration(config)
    model.save_pretrained(directory)
    return directory


def measure(directory: Path, tokens: int) -> dict[str, Any]:
    """The engine and the bare graph of a build, in turns at every number of requests."""
    manifest = Manifest.read(directory)
    prompts = PromptTokenizer.from_build(directory, manifest)
    model = open_model(directory, manifest, slots=max(AT_ONCE), positions=4 * PAST)
    assert isinstance(model, DecoderOnly)
    at_once: dict[str, Any] = {}
    bandwidth = 0.0
    with closing(OnnxEngine(model, prompts, manifest.language_model)) as engine:
        for count in AT_ONCE:
            engine_rate = bare_rate = 0.0
            for _ in range(ROUNDS):
                bandwidth = max(bandwidth, read_bandwidth(available_cores()))
                engine_rate = max(engine_rate, _engine_rate(engine, manifest, count, tokens))
                rows = model.rows(count)
                rows.positions[:] = PAST + tokens // 2
                rows.total[0] = rows.positions.max() + 1
                bare_rate = max(bare_rate, _loop_rate(partial(rows.run, 0), count, tokens))
            at_once[str(count)] = {
                "engine": round(engine_rate, 2),
                "bare_graph": round(bare_rate, 2),
                "share": round(engine_rate / bare_rate, 3),
            }
    graph = manifest.components["language_model"].graphs["batched_decoder"]
    read = weight_bytes(directory / graph.path)
    return {
        "at_once": at_once,
        "bytes_a_token": read,
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "share_of_bandwidth_at_1": {
            way: round(at_once["1"][way] * read / bandwidth, 3) for way in ("engine", "bare_graph")
        },
    }


def weight_bytes(path: Path) -> int:
    """Bytes of the weights that a graph reads whole: all but tables of embeddings."""
    model = onnx.load(path, load_external_data=False)
    read = {name for node in model.graph.node if node.op_type != "Gather" for name in node.input}
    tensors = (tensor for tensor in model.graph.initializer if tensor.name in read)
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return sum(int(entry.value) for entry in entries if entry.key == "length")


def _loop_rate(run: Callable[[], None], count: int, tokens: int) -> float:
    run()
    started = time.perf_counter()
    for _ in range(tokens):
        run()
    return count * tokens / (time.perf_counter() - started)


def _engine_rate(engine: OnnxEngine, manifest: Manifest, count: int, tokens: int) -> float:
    """Tokens per second between the last request's first token and the end of the last."""
    random = np.random.default_rng(0)
    # One prompt is read in each turn, so a request is one token ahead of the next when that begins.
    # Its answer is one token longer, so all of them end in the same step.
    lengths = [tokens + count - 1 - i for i in range(count)]
    facts = manifest.language_model
    prompt = "What is it? " * 10
    requests = [
        GenerationRequest(
            prompt=prompt,
            visual_prompt=random.standard_normal(
                (1, facts.num_query_tokens, facts.hidden_size)
            ).astype(np.float32),
            options=GenerationOptions(max_new_tokens=length, min_new_tokens=length),
        )
        for length in lengths
    ]
    answers = [generation.result() for generation in [engine.submit(r) for r in requests]]
    last = answers[-1]
    return count * (last.completion_tokens - 1) / last.timing.decode_s


if __name__ == "__main__":
    main()
