"""Ten questions about one image: encoded once, and the time against transformers."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.alone import Way, compare
from benchmarks.builds import build
from benchmarks.way import QUESTIONS
from iblip.export.examples import read_examples
from iblip.serving.client import Client
from iblip.serving.client.patience import ONE_ATTEMPT
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.server import TritonServer

APART, TOGETHER = "one after another", "together"


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
    ways = {"transformers": Way(name="transformers", task=APART, build=directory)} | {
        f"{name}, {task}": Way(name=name, task=task, build=directory)
        for name in ("in process", "through Triton")
        for task in (APART, TOGETHER)
    }
    times = compare(ways, checkpoint)
    return {"questions": len(prompts), "vision_encoder_runs": runs, "ten_questions": times}


def _runs(metrics_url: str) -> int:
    """Executions of the vision encoder so far, as the server counts them."""
    with urllib.request.urlopen(metrics_url) as response:
        text = response.read().decode()
    pattern = r'nv_inference_exec_count\{model="vision_encoder"[^}]*\} (\d+)'
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
