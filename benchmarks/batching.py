"""`python -m benchmarks.batching`: tokens per second, the engine against the bare graph in a loop.

The model is a LLaMA with random weights, made here; its size is chosen by options.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np

from engines.language_model.graphs import DecoderOnly, open_model
from engines.language_model.onnx_engine import OnnxEngine
from engines.language_model.options import GenerationOptions
from engines.language_model.types import GenerationRequest
from engines.text import PromptTokenizer
from export.checkpoint import DEMO
from export.manifest import Manifest
from serving.build import BuildOptions, build
from serving.cli.quiet import quiet_libraries

AT_ONCE = (1, 2, 4, 8, 16)
NEW_TOKENS = 64
QUERIES = 32


@click.command()
@click.option("--hidden", default=2048, show_default=True)
@click.option("--mlp", default=5504, show_default=True)
@click.option("--layers", default=22, show_default=True)
@click.option("--heads", default=16, show_default=True)
@click.option("--vocabulary", default=32000, show_default=True)
@click.option("--tokens", default=NEW_TOKENS, show_default=True, help="Of every answer.")
def main(**options: int) -> None:
    """Print tokens per second by the number of requests at once, as JSON."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        tokens = options.pop("tokens")
        checkpoint = random_checkpoint(Path(scratch) / "random-llama", **options)
        made = BuildOptions(model=checkpoint, output=Path(scratch) / "build", verify=False)
        click.echo(json.dumps(measure(build(made), tokens), indent=2))


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
    """Tokens per second of the bare graph and of the engine, in turns at every batch size."""
    manifest = Manifest.read(directory)
    facts = manifest.language_model
    prompts = PromptTokenizer.from_build(directory, manifest)
    model = open_model(directory, manifest, slots=max(AT_ONCE))
    assert isinstance(model, DecoderOnly)
    found: dict[str, Any] = {}
    with closing(OnnxEngine(model, prompts, facts)) as engine:
        for count in AT_ONCE:
            engine_rate = _engine_rate(
                engine, facts.num_query_tokens, facts.hidden_size, count, tokens
            )
            bare_rate = _bare_rate(model, count, tokens)
            found[str(count)] = {
                "engine": round(engine_rate, 1),
                "bare_graph": round(bare_rate, 1),
                "share": round(engine_rate / bare_rate, 3),
            }
    return {"tokens_per_second": found}


def _bare_rate(model: DecoderOnly, count: int, tokens: int) -> float:
    """The decoder alone, on rows that already have as many positions as the engine's on average."""
    rows = model.rows(count)
    rows.positions[:] = QUERIES + 8 + tokens // 2
    rows.binding.run()
    started = time.perf_counter()
    for _ in range(tokens):
        rows.binding.run()
    return count * tokens / (time.perf_counter() - started)


def _engine_rate(engine: OnnxEngine, queries: int, hidden: int, count: int, tokens: int) -> float:
    """From when every request has its first token to when the last one ends."""
    random = np.random.default_rng(0)
    # One prompt is read a turn, so each request has one token more than the next when that
    # begins: with as many more to say, all of them end in the same step.
    lengths = [tokens + count - 1 - i for i in range(count)]
    requests = [
        GenerationRequest(
            prompt=f"What is number {i}?",
            visual_prompt=random.standard_normal((queries, hidden)).astype(np.float32),
            options=GenerationOptions(max_new_tokens=lengths[i], min_new_tokens=lengths[i]),
        )
        for i in range(count)
    ]
    answers = [generation.result() for generation in [engine.submit(r) for r in requests]]
    last = answers[-1]
    return count * (last.completion_tokens - 1) / last.timing.decode_s


if __name__ == "__main__":
    main()
