"""`python -m benchmarks.peer_ways WAY DIRECTORY THREADS`: one way to run a language model, timed.

`benchmarks.peers` runs each way in a process of its own, since the threads of one would wait busily
beside the other's. A way reads a prompt, and runs steps of several sequences with a past. Prints
JSON: by what is run, medians of processor time, of all threads, and of time on the clock.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iblip.engines.language_model.onnx.decoder_only import DecoderOnly, Rows
from iblip.engines.language_model.onnx.opening import open_graphs
from iblip.engines.onnxruntime.binding import Binding
from iblip.engines.onnxruntime.providers import CPU
from iblip.engines.onnxruntime.session import load_onnxruntime
from iblip.export.artifact.manifest import Manifest

AT_ONCE = (1, 4, 8, 16)
PROMPT = 64
"""Positions of a prompt, and before the timed step."""

REPEATS = 7

Work = Callable[[], object]


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


def genai(directory: Path, threads: int) -> Mapping[str, Work]:
    """The graph of GenAI's builder (`exclude_embeds=true`), bound as ours is."""
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    path = str(directory / "model.onnx")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]
    logits = next(value for value in session.get_outputs() if value.name == "logits")
    hidden = next(v for v in session.get_inputs() if v.name == "inputs_embeds").shape[2]

    def bound(count: int, sequence: int, past: int) -> Work:
        binding = Binding(session, path)
        binding.input("inputs_embeds", np.full((count, sequence, hidden), 0.02, np.float32))
        binding.input("attention_mask", np.ones((count, past + sequence), np.int64))
        binding.output("logits", np.zeros((count, sequence, logits.shape[2]), np.float32))
        for value in caches:
            heads = value.shape[1]
            slots = np.zeros((count, heads, 2 * PROMPT, hidden // heads), np.float32)
            binding.input(value.name, slots)
            binding.output(value.name.replace("past_key_values", "present"), slots)
        return binding.run

    steps = {f"step of {n}": bound(n, 1, PROMPT) for n in AT_ONCE}
    return {"prompt": bound(1, PROMPT, 0)} | steps


def transformers(directory: Path, threads: int) -> Mapping[str, Work]:
    """transformers' own LLaMA, float32."""
    import torch
    from transformers import DynamicCache, LlamaForCausalLM

    torch.set_num_threads(threads)
    model: Any = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def read(count: int) -> DynamicCache:
        with torch.inference_mode():
            ids = torch.arange(5, 5 + PROMPT).repeat(count, 1)
            cache: DynamicCache = model(input_ids=ids, logits_to_keep=1).past_key_values
        return cache

    pasts = {count: read(count) for count in AT_ONCE}

    def step(count: int) -> None:
        with torch.inference_mode():
            model(input_ids=torch.full((count, 1), 7), past_key_values=pasts[count])

    return {"prompt": partial(read, 1)} | {f"step of {n}": partial(step, n) for n in AT_ONCE}


WAYS: Mapping[str, Callable[[Path, int], Mapping[str, Work]]] = {
    "onnxruntime": partial(over_slots, openvino=False),
    "openvino": partial(over_slots, openvino=True),
    "stateful": stateful,
    "genai": genai,
    "transformers": transformers,
}


if __name__ == "__main__":
    way, directory, threads = sys.argv[1:]
    print(json.dumps(times(WAYS[way](Path(directory), int(threads)))))
