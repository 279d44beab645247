"""`python -m benchmarks peers [PART …]`: this project beside others, in one run, on one machine.

A language model of random weights, step by step; a vision encoder of ViT-g's layers; a whole short
answer of a demo. What is not installed is named with the command that installs it. Each way is a
process of its own, and they take turns. Writes the page docs/peers.md, where the figures of other
processors stay.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks import latency, vision_encoder
from benchmarks.batching import random_checkpoint
from benchmarks.measure import commit, load, load_figures, processor_name, run, save_figures
from benchmarks.peers_page import write_page
from iblip.engines.onnxruntime.session import available_cores
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.serving.cli.quiet import quiet_libraries

ROUNDS = 3

BENCH = "pip install 'iblip[bench]'"
LLAMA_CPP = (
    "python -m venv .venv-llama-cpp && .venv-llama-cpp/bin/pip install llama-cpp-python gguf,"
    " then --llama-cpp .venv-llama-cpp/bin/python"
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One program that runs the language model.

    Attributes:
        way: a key of `benchmarks.peer_ways.WAYS`; empty for llama.cpp.
        model: what it runs, a method of `Models`.
        beside: title of the way that it is compared with.
        package: its package on PyPI, whose module may be missing.
    """

    way: str
    model: str
    beside: str
    package: str = "onnxruntime"


INT4, FP32 = "iblip, int4", "iblip, fp32"

WAYS: Mapping[str, Way] = {
    INT4: Way(way="onnxruntime", model="int4", beside=INT4),
    "iblip on OpenVINO, int4": Way(way="openvino", model="int4", beside=INT4, package="openvino"),
    "OpenVINO, int4": Way(way="stateful", model="int4", beside=INT4, package="openvino"),
    "ONNX Runtime GenAI's graph, int4": Way(
        way="genai", model="genai", beside=INT4, package="onnxruntime-genai"
    ),
    "llama.cpp, Q4_0": Way(way="", model="checkpoint", beside=INT4, package="llama-cpp-python"),
    FP32: Way(way="onnxruntime", model="fp32", beside=FP32),
    "transformers, fp32": Way(
        way="transformers", model="llama", beside=FP32, package="transformers"
    ),
}
"""By title."""


class Models:
    """One language model in every form, each made when it is first wanted.

    Args:
        directory: where they are.
        shape: of the model, as `random_checkpoint` takes it.
    """

    def __init__(self, directory: Path, shape: Mapping[str, int]) -> None:
        self._directory, self._shape = directory, shape

    def checkpoint(self) -> Path:
        """An InstructBLIP that has it."""
        return self._make("checkpoint", lambda path: random_checkpoint(path, **self._shape))

    def int4(self) -> Path:
        """A build in int4."""
        return self._make("int4", self._build)

    def fp32(self) -> Path:
        """A build in fp32."""
        return self._make("fp32", self._build)

    def llama(self) -> Path:
        """A checkpoint of the language model alone."""
        return self._make("llama", self._write_llama)

    def genai(self) -> Path:
        """What GenAI's builder makes of that."""
        return self._make("genai", self._build_with_genai)

    def _make(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self._directory / name
        if not path.exists():
            make(path)
        return path

    def _build(self, path: Path) -> None:
        words = ["--model", str(self.checkpoint()), "--precision", f"language_model={path.name}"]
        run(["iblip", "export", "build", *words, "--no-verify", "--output", str(path)])

    def _write_llama(self, path: Path) -> None:
        from transformers import InstructBlipForConditionalGeneration

        source = self.checkpoint()
        whole = InstructBlipForConditionalGeneration.from_pretrained(source)
        whole.language_model.save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, path / name)

    def _build_with_genai(self, path: Path) -> None:
        words = ["-i", str(self.llama()), "-o", str(path), "-p", "int4", "-e", "cpu"]
        words += ["-c", str(path / "cache"), "--extra_options", "exclude_embeds=true"]
        run(["onnxruntime_genai.models.builder", *words])


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(["language_model", "vision", "answer"]))
@click.option("--hidden", default=2048, show_default=True)
@click.option("--mlp", default=5504, show_default=True)
@click.option("--layers", default=22, show_default=True, help="Of the language model.")
@click.option("--heads", default=16, show_default=True)
@click.option("--vocabulary", default=32000, show_default=True)
@click.option("--vision-layers", default=4, show_default=True)
@click.option("--threads", default=available_cores(), show_default="one per core")
@click.option("--models", type=click.Path(path_type=Path), help="Holds the models.")
@click.option("--llama-cpp", type=click.Path(exists=True), help="A Python that has llama.cpp.")
def main(
    parts: Sequence[str],
    vision_layers: int,
    threads: int,
    models: Path | None,
    llama_cpp: str | None,
    **shape: int,
) -> None:
    """Measure these PARTS (or all), save the figures, write docs/peers.md."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as name:
        scratch = Path(name)
        of_part: Mapping[str, Callable[[], dict[str, Any]]] = {
            "language_model": lambda: {
                "model": shape,
                "ways": language_model(Models(models or scratch, shape), threads, llama_cpp),
            },
            "vision": lambda: vision_encoder.measure(
                scratch, layers=vision_layers, threads=threads, rounds=ROUNDS
            ),
            "answer": lambda: {"ways": latency.main(DEMO, scratch)},
        }
        for part in parts or of_part:
            machine = {"commit": commit(), "threads": threads, "load": load()}
            figures = {**machine, **of_part[part]()}
            click.echo(f"{part}: {json.dumps(figures, indent=1)}")
            saved = load_figures("peers")
            here = {**saved.get(processor_name(), {}), part: figures}
            save_figures("peers", {**saved, processor_name(): here})
            write_page(load_figures("peers"))


def language_model(models: Models, threads: int, llama_cpp: str | None) -> dict[str, Any]:
    """By way: its version, medians of its rounds by what is run; or why there are none."""
    commands, figures = {}, dict[str, Any]()
    for title, way in WAYS.items():
        if way.way and find_spec(way.package.replace("-", "_")) is None:
            figures[title] = {"missing": BENCH}
        elif not way.way and llama_cpp is None:
            figures[title] = {"missing": LLAMA_CPP}
        else:
            model = getattr(models, way.model)()
            commands[title] = _command(way, model, threads, llama_cpp)
            figures[title] = {"version": _version(way, llama_cpp), "beside": way.beside}
    rounds: dict[str, list[Any]] = {title: [] for title in commands}
    for _ in range(ROUNDS):
        for title, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                figures[title] = {"failed": lines[-1]}
            else:
                rounds[title].append(json.loads(done.stdout.splitlines()[-1]))
    for title, found in rounds.items():
        if "failed" not in figures[title]:
            figures[title]["works"] = _medians(found)
    return figures


def _medians(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        work: {
            key: round(statistics.median(one[work][key] for one in rounds), 1)
            for key in ("cpu_ms", "ms")
        }
        for work in rounds[0]
    }


def _command(way: Way, model: Path, threads: int, llama_cpp: str | None) -> list[str]:
    if way.way or llama_cpp is None:
        words = [way.way, str(model), str(threads)]
        return [sys.executable, "-m", "benchmarks.peer_ways", *words]
    script = Path(__file__).with_name("llama_cpp_way.py")
    return [llama_cpp, str(script), str(model), str(model.with_name("model.gguf")), str(threads)]


def _version(way: Way, llama_cpp: str | None) -> str:
    if way.way or llama_cpp is None:
        return f"{way.package} {version(way.package)}"
    code = f"from importlib.metadata import version; print(version({way.package!r}))"
    text = subprocess.run([llama_cpp, "-c", code], check=True, capture_output=True, text=True)
    return f"{way.package} {text.stdout.strip()}"


if __name__ == "__main__":
    main()
