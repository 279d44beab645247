"""`python -m benchmarks growth [AXIS …]`: how the cost grows with the work, one axis at a time.

Everything runs in this process on ONNX Runtime, with random weights (`iblip synthesize`). Every
size is run several times, and the quickest counts. Processor time, of all threads, is what
exponents are of: other programs change it little. Idle threads of the decoder wait busily, so it is
exact with `--threads 1`. An axis has its figures in results.json and does not change those of the
others; every call writes the page docs/growth.md from what is there.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.exponents import find_bends, fit_exponent, local_exponents
from benchmarks.growth_page import write_page
from benchmarks.measure import load, load_figures, run, save_figures
from iblip.engines.language_model.onnx.engine import OnnxEngine
from iblip.engines.language_model.onnx.opening import open_model
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.onnxruntime.session import available_cores
from iblip.engines.pipeline import Pipeline
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import SLOTS, Manifest
from iblip.export.models.geometry import VIT_G, Config
from iblip.export.models.table import MODELS
from iblip.export.synthesis.checkpoint import Synthesis, synthesize
from iblip.serving.cli.quiet import quiet_libraries

ROUNDS = 4
"""Calls of every size, of which the quickest counts."""

QUERIES = 8
"""Positions of an image: few, so that a prompt can be short."""

PROMPT, TOKENS = 64, 16
"""Positions of a prompt and tokens of an answer, where the axis is another."""

AT_ONCE = (1, 2, 4, 8, 16, 32, 64)
BEAMS = (1, 2, 4, 8, 16)
IMAGE_SIZES = (224, 364, 448)


def llama(hidden: int, mlp: int, layers: int, heads: int) -> Config:
    """The geometry of a LLaMA."""
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": heads}
    return {**MODELS["instructblip-vicuna-7b"].text, **sizes, **heads_of}


SIZES: Mapping[float, Config] = {
    0.1: llama(768, 2048, 12, 12),
    0.3: llama(1024, 2816, 24, 16),
    1.2: llama(2048, 5504, 22, 16),
    3.0: llama(2560, 6912, 38, 20),
    6.7: llama(4096, 11008, 32, 32),
}
"""Language models, by billions of parameters."""

SMALL_VIT: Config = {**VIT_G, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
SOME_LAYERS = 2
"""Of ViT-g: every layer costs the same."""

Calls = Mapping[str, Callable[[Any], object]]
"""What is run with a size, by what it is."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One way in which the work grows.

    Attributes:
        title: what grows, and its unit.
        sizes: of the work, in ascending order.
        open: opens what runs, over builds and with a number of threads.
        why: what the exponent comes from.
        size_of: what the exponent is of, where it is not the size itself.
        long: run only if it is named.
    """

    title: str
    sizes: Sequence[float]
    open: Callable[[Builds, int], AbstractContextManager[Calls]]
    why: str
    size_of: Callable[[float], float] = float
    long: bool = False


class Builds:
    """Builds with random weights, each made when it is first wanted.

    Args:
        directory: where they are, and stay.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def language_model(self, size: float) -> Path:
        """A language model in int4 behind a small vision encoder."""
        return self._build(f"language-model-{size}", vision=SMALL_VIT, text=SIZES[size])

    def vision_encoder(self, image_size: int) -> Path:
        """Some layers of ViT-g before a small language model."""
        vision = {**VIT_G, "num_hidden_layers": SOME_LAYERS, "image_size": image_size}
        return self._build(f"vision-encoder-{image_size}", vision=vision, text=SIZES[0.1])

    def _build(self, name: str, *, vision: Config, text: Config) -> Path:
        output, checkpoint = self._directory / name, self._directory / f"{name}-checkpoint"
        if not output.exists():
            row = replace(
                MODELS["instructblip-vicuna-7b"], vision=vision, text=text, num_query_tokens=QUERIES
            )
            if row.qformer is not None:
                narrow = {**row.qformer, "encoder_hidden_size": vision["hidden_size"]}
                row = replace(row, qformer={**narrow, "num_hidden_layers": 2})
            synthesize(Synthesis(model=row, dtype="float16"), checkpoint)
            words = ["--model", str(checkpoint), "--precision", "language_model=int4"]
            run(["iblip", "export", "build", *words, "--no-verify", "--output", str(output)])
        return output


class Engine:
    """The language model of a build, and requests of any size to it.

    Args:
        directory: of the build.
        threads: of one operator.
        slots: how many sequences it holds.
    """

    def __init__(self, directory: Path, threads: int, slots: int = SLOTS) -> None:
        manifest = Manifest.read(directory)
        prompts = PromptTokenizer.from_build(directory, manifest)
        model = open_model(directory, manifest, threads=threads, slots=slots, prefix_cache=False)
        self._hidden = manifest.language_model.hidden_size
        self._engine = OnnxEngine(model, prompts, manifest.language_model)
        self._fixed = len(prompts(".", 1).ids) - 1 + QUERIES

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.close()

    def ask(
        self, count: int = 1, positions: int = PROMPT, tokens: int = TOKENS, **more: Any
    ) -> None:
        """Asks for `count` answers at once, of so many tokens, and waits for all."""
        options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens, **more)
        generations = [self._engine.submit(self._request(positions, options)) for _ in range(count)]
        for generation in generations:
            assert generation.result().prompt_tokens == positions

    def rank(self, count: int) -> None:
        """Ranks so many candidates, words of six letters."""
        random = np.random.default_rng(0)
        letters = random.integers(ord("a"), ord("z") + 1, (count, 6), dtype=np.uint8)
        options = GenerationOptions(candidates=tuple(row.tobytes().decode() for row in letters))
        self._engine.submit(self._request(PROMPT, options)).result()

    def _request(self, positions: int, options: GenerationOptions) -> GenerationRequest:
        visual_prompt = np.random.default_rng(0).standard_normal((1, QUERIES, self._hidden))
        return GenerationRequest(
            prompt="." * (positions - self._fixed),
            visual_prompt=visual_prompt.astype(np.float32),
            options=options,
        )


@contextmanager
def one_request(name: str, builds: Builds, threads: int) -> Iterator[Calls]:
    """One request to the smallest language model; the size is this argument of `Engine.ask`."""
    with Engine(builds.language_model(0.1), threads, slots=BEAMS[-1]) as engine:
        yield {"": lambda size: engine.ask(**{name: size})}


@contextmanager
def candidates(builds: Builds, threads: int) -> Iterator[Calls]:
    """One request to rank so many candidates."""
    with Engine(builds.language_model(0.1), threads) as engine:
        yield {"": engine.rank}


@contextmanager
def requests(builds: Builds, threads: int) -> Iterator[Calls]:
    """So many requests at once: beyond the slots they wait."""
    directory = builds.language_model(0.1)
    with Engine(directory, threads) as few, Engine(directory, threads, AT_ONCE[-1]) as many:
        yield {
            f"{SLOTS} slots": lambda count: few.ask(count=count),
            f"{AT_ONCE[-1]} slots": lambda count: many.ask(count=count),
        }


@contextmanager
def image_size(builds: Builds, threads: int) -> Iterator[Calls]:
    """One image; each size has an encoder of its own."""
    with ExitStack() as stack:
        encoders = {
            size: stack.enter_context(Pipeline(builds.vision_encoder(size), threads))
            for size in IMAGE_SIZES
        }
        yield {
            "": lambda size: np.asarray(
                encoders[size].encode_image(np.zeros((1, size, size, 3), np.uint8))
            )
        }


@contextmanager
def images(builds: Builds, threads: int) -> Iterator[Calls]:
    """A request about so many images, none of which has been encoded before."""
    random, size = np.random.default_rng(0), IMAGE_SIZES[0]
    options = GenerationOptions(max_new_tokens=1)
    with Pipeline(builds.vision_encoder(size), threads) as pipeline:

        def ask(count: int) -> object:
            pixels = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            return pipeline.answer(pixels, "What is it?", options)

        yield {"": ask}


@contextmanager
def model_size(builds: Builds, threads: int) -> Iterator[Calls]:
    """Three works for each language model, of which one is loaded at a time."""
    with ExitStack() as stack:
        loaded: dict[float, Engine] = {}

        def ask(size: float, **work: int) -> None:
            if size not in loaded:
                stack.pop_all().close()
                loaded.clear()
                loaded[size] = stack.enter_context(Engine(builds.language_model(size), threads))
            loaded[size].ask(**work)

        yield {
            f"prompt of {PROMPT}": partial(ask, tokens=1),
            f"… and {TOKENS} tokens": ask,
            f"… of {SLOTS} requests": partial(ask, count=SLOTS),
        }


def patches(size: float) -> float:
    """Positions of the vision encoder for an image of so many pixels a side."""
    return float((size // VIT_G["patch_size"]) ** 2 + 1)


AXES: Mapping[str, Axis] = {
    "requests": Axis(
        title="requests at once",
        sizes=AT_ONCE,
        open=requests,
        why="prompts are read one by one, steps are shared",
    ),
    "prompt": Axis(
        title="prompt, positions",
        sizes=(32, 64, 128, 256, 512, 1024),
        open=partial(one_request, "positions"),
        why="each position costs the same, and its attention more",
    ),
    "answer": Axis(
        title="answer, tokens",
        sizes=(16, 32, 64, 128, 256, 512),
        open=partial(one_request, "tokens"),
        why="each step costs the same, and its attention more",
    ),
    "image_size": Axis(
        title="image, pixels a side (exponent of its patches)",
        sizes=IMAGE_SIZES,
        open=image_size,
        why="each patch costs the same, and its attention more",
        size_of=patches,
    ),
    "candidates": Axis(
        title="candidates ranked",
        sizes=(10, 30, 100, 300, 1000),
        open=candidates,
        why="a row of a step for each token that begins no other candidate",
    ),
    "beams": Axis(
        title="beams",
        sizes=BEAMS,
        open=partial(one_request, "num_beams"),
        why="a row of a step for each beam; int4 shares little beyond four rows",
    ),
    "images": Axis(
        title="images of a request",
        sizes=(1, 2, 4),
        open=images,
        why="images are encoded one by one",
    ),
    "model_size": Axis(
        title="language model, billions of parameters",
        sizes=tuple(SIZES),
        open=model_size,
        why="each weight is used once for each position",
        long=True,
    ),
}


@click.command()
@click.argument("axes", nargs=-1, type=click.Choice(list(AXES)))
@click.option("--threads", default=available_cores(), show_default="one per core")
@click.option("--most", type=float, help="Largest size, of every axis.")
@click.option(
    "--builds", type=click.Path(path_type=Path), help="Holds the builds for the next call."
)
def main(axes: Sequence[str], threads: int, most: float | None, builds: Path | None) -> None:
    """Measure these AXES (or all but model_size), save the figures, write docs/growth.md."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as scratch:
        made = Builds(builds or Path(scratch))
        for name in axes or [name for name, axis in AXES.items() if not axis.long]:
            axis = AXES[name]
            sizes = [size for size in axis.sizes if most is None or size <= most]
            figures = {
                "title": axis.title,
                "why": axis.why,
                "threads": threads,
                "load": load(),
                **measure(axis, sizes, made, threads),
            }
            known = {**load_figures("growth"), name: figures}
            saved = {axis: known[axis] for axis in AXES if axis in known}
            save_figures("growth", saved)
            write_page(saved)
            click.echo(f"{name}: {json.dumps(figures['curves'], indent=1)}")


def measure(axis: Axis, sizes: Sequence[float], builds: Builds, threads: int) -> dict[str, Any]:
    """Times of every size, in milliseconds, exponents and bends, by what is run."""
    points: dict[str, list[tuple[float, float]]] = {}
    with axis.open(builds, threads) as calls:
        for size in sizes:
            for name, call in calls.items():
                points.setdefault(name, []).append(least(partial(call, size)))
    of = [axis.size_of(size) for size in sizes]
    curves = {}
    for name, times in points.items():
        cpu, wall = ([round(value * 1e3, 2) for value in each] for each in zip(*times, strict=True))
        curves[name] = {
            "cpu_ms": cpu,
            "ms": wall,
            "exponent": round(fit_exponent(of, cpu), 2),
            "local": [round(value, 2) for value in local_exponents(of, cpu)],
            "bends": [
                {
                    "size": sizes[of.index(bend.size)],
                    "before": round(bend.before, 2),
                    "after": round(bend.after, 2),
                }
                for bend in find_bends(of, cpu)
            ],
        }
    return {"sizes": list(sizes), "curves": curves}


def least(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and on the clock: the least of the rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time(), time.perf_counter()
        work()
        taken.append((time.process_time() - started[0], time.perf_counter() - started[1]))
    cpu, wall = zip(*taken, strict=True)
    return min(cpu), min(wall)


if __name__ == "__main__":
    main()
