"""Ten questions about one image: encoded once, and the time against transformers.

With the prefix cache and without it, where the language model can have one.
"""

from __future__ import annotations

import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.alone import Way, compare
from benchmarks.builds import build
from benchmarks.served import idle_metrics, limit
from benchmarks.way import QUESTIONS
from iblip.export.artifact.manifest import Manifest
from iblip.export.examples import read_examples
from iblip.serving.client import Client
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

APART, TOGETHER = "one after another", "together"

WITHOUT = "no prefix cache"


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Runs of the vision encoder by Triton's own counters, then times, each way alone, in turns."""
    directory = build(checkpoint, scratch)
    examples = read_examples(checkpoint / "examples")
    prompts = list(dict.fromkeys(example.prompt for example in examples))[:QUESTIONS]
    with (
        TritonServer(directory / REPOSITORY) as server,
        Client(server.grpc_url, timeout=ONE_ATTEMPT, retries=0) as client,
    ):
        before = _runs(server.metrics_url)
        for prompt in prompts:
            client.ask(examples[0].image, prompt)
        runs = _runs(server.metrics_url) - before
        metrics = idle_metrics(server)
    builds = {"": directory}
    if not Manifest.read(directory).language_model.is_encoder_decoder:
        builds[f", {WITHOUT}"] = _without_prefix_cache(directory)
    ways = {"transformers": Way(name="transformers", task=APART, build=directory)} | {
        f"{name}, {task}{suffix}": Way(name=name, task=task, build=build)
        for name in ("in process", "through Triton")
        for task in (APART, TOGETHER)
        for suffix, build in builds.items()
    }
    times = compare(ways, checkpoint)
    return {
        "questions": len(prompts),
        "vision_encoder_runs": runs,
        "prompt_tokens": {
            kind: metrics[f"iblip_{name}prompt_tokens_total"]
            for kind, name in (("read", ""), ("cached", "cached_"))
        },
        "ten_questions": times,
        "prefix_cache": {
            title: {
                measure: round(times[title][measure] / times[f"{title}, {WITHOUT}"][measure], 3)
                for measure in ("median_ms", "processor_ms")
            }
            for title in times
            if f"{title}, {WITHOUT}" in times
        },
    }


def _without_prefix_cache(directory: Path) -> Path:
    """The same build without one, beside it."""
    other = directory.with_name(f"{directory.name}-without-prefix-cache")
    shutil.copytree(directory, other, symlinks=True)
    manifest = Manifest.read(other)
    replace(manifest, limits=replace(manifest.limits, prefix_cache=False)).write(other)
    limit(other)
    return other


def _runs(metrics_url: str) -> int:
    """Executions of the vision encoder so far, as the server counts them."""
    with urllib.request.urlopen(metrics_url) as response:
        text = response.read().decode()
    pattern = r'nv_inference_exec_count\{model="vision_encoder"[^}]*\} (\d+)'
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
