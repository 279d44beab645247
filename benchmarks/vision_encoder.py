"""`python -m benchmarks.vision_encoder`: the vision encoder at the models' true size, one image.

Its weights are random (`iblip synthesize`), behind it stands a small language model. In one run,
in turns, on as many threads: torch as transformers calls it, our builds in fp32 and int8 on ONNX
Runtime, and in fp32, bf16 and static int8 on OpenVINO. Cosines are to torch's fp32 output.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.measure import in_turns, run, save_figures
from benchmarks.plots import plot_shares
from iblip.engines.onnxruntime.session import available_cores, load_onnxruntime
from iblip.engines.openvino.runner import OpenVinoRunner
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO, checkpoint_from_directory
from iblip.export.graph.onnxruntime_values import session_from_onnx
from iblip.export.images import pixels_from_image
from iblip.export.models.geometry import OPT_2_7B, VIT_G
from iblip.export.models.table import MODELS
from iblip.export.synthesis.checkpoint import Synthesis, synthesize
from iblip.serving.cli.quiet import quiet_libraries

SMALL_OPT = {
    **OPT_2_7B,
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""What stands behind the vision encoder, so that the checkpoint is no larger than it must be."""

HELDOUT = DEMO.parent / "heldout"

BUILDS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("--precision", "fp32"),
    "int8_dynamic": ("--precision", "vision_encoder=int8"),
    "int8_static": (
        "--precision",
        "vision_encoder=int8",
        "--int8",
        "static",
        "--calibration",
        str(HELDOUT),
        # As of dynamic int8, which is not measured here, nothing stays in float.
        "--sensitive",
        "0",
    ),
    "bf16": ("--precision", "vision_encoder=bf16"),
}
"""By name: what `iblip build` is asked for."""

ON_ONNXRUNTIME = ("fp32", "int8_dynamic", "int8_static")
ON_OPENVINO: Mapping[str, str] = {
    "openvino_fp32": "fp32",
    "openvino_bf16": "bf16",
    "openvino_int8": "int8_static",
}
"""By name: the build that OpenVINO runs."""

Way = Callable[[], npt.NDArray[np.float32]]


@click.command()
@click.option("--layers", default=VIT_G["num_hidden_layers"], show_default=True)
@click.option("--threads", default=available_cores(), show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the ratios as PNG.")
def main(layers: int, threads: int, rounds: int, plot: Path | None) -> None:
    """Measure, and save the figures in `benchmarks/results.json`."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmarks-") as name:
        figures = measure(Path(name), layers=layers, threads=threads, rounds=rounds)
    save_figures("vision_encoder", figures)
    click.echo(json.dumps(figures, indent=2))
    if plot is not None:
        plot_shares(plot, {name: way["ratio"] for name, way in figures["ways"].items()})


def measure(scratch: Path, *, layers: int, threads: int, rounds: int) -> dict[str, Any]:
    """Time, ratio to torch's, and cosine by way; where ours spends its time."""
    checkpoint = vision_checkpoint(scratch, layers)
    for name, options in BUILDS.items():
        build = ["iblip", "export", "build", "--model", str(checkpoint), "--no-verify", *options]
        run([*build, "--output", str(scratch / name)])
    manifest = Manifest.read(scratch / "fp32")
    image = sorted(HELDOUT.glob("images/*"))[0]
    pixels = pixels_from_image(image, manifest.preprocessing)[None]
    ways: dict[str, Way] = {"torch": torch_way(checkpoint, pixels, threads)}
    ways |= {name: _ours(_graph(scratch / name), pixels, threads) for name in ON_ONNXRUNTIME}
    with ExitStack() as stack:
        ways |= {
            name: _openvino(stack, scratch / build, pixels, threads)
            for name, build in ON_OPENVINO.items()
            if find_spec("openvino")
        }
        cosines, times = _compare(ways, rounds)
        ways.clear()
    return {
        "layers": layers,
        "threads": threads,
        "ways": {name: {**times[name], "cosine": round(cosines[name], 6)} for name in times},
        "operators": {
            name: operator_shares(_graph(scratch / name), pixels, threads, scratch)
            for name in ("fp32", "int8_dynamic")
        },
    }


def _compare(
    ways: Mapping[str, Way], rounds: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Cosine to torch's output by way, and times."""
    outputs = {name: way() for name, way in ways.items()}
    cosines = {name: _cosine(output, outputs["torch"]) for name, output in outputs.items()}
    times = in_turns({name: _of_turn(way) for name, way in ways.items()}, rounds, warm_up=1)
    return cosines, times


def vision_checkpoint(scratch: Path, layers: int) -> Path:
    """A checkpoint of random weights with a ViT-g of so many layers, and little behind it."""
    checkpoint = scratch / "checkpoint"
    row = replace(
        MODELS["blip2-opt-2.7b"], text=SMALL_OPT, vision={**VIT_G, "num_hidden_layers": layers}
    )
    synthesize(Synthesis(model=row), checkpoint)
    return checkpoint


def _of_turn(way: Way) -> Callable[[int], Any]:
    return lambda turn: way()


def torch_way(checkpoint: Path, pixels: npt.NDArray[np.uint8], threads: int) -> Way:
    """transformers' own vision model of the checkpoint, behind its own image processor."""
    import torch
    from PIL import Image
    from transformers import Blip2VisionModel

    torch.set_num_threads(threads)
    opened = checkpoint_from_directory(checkpoint)
    with torch.device("meta"):
        module: Any = Blip2VisionModel(opened.config.vision_config)
    prefix = "vision_model."
    weights = {
        name.removeprefix(prefix): torch.from_numpy(np.array(weight.read()))
        for name, weight in opened.tensors.items()
        if name.startswith(prefix)
    }
    module.load_state_dict(weights, assign=True)
    module.eval()
    images = [Image.fromarray(row) for row in pixels]
    values = opened.processor.image_processor(images, return_tensors="pt")["pixel_values"]

    def way() -> npt.NDArray[np.float32]:
        with torch.no_grad():
            features: npt.NDArray[np.float32] = module(pixel_values=values)[0].numpy()
        return features

    return way


def _graph(build: Path) -> Path:
    return build / Manifest.read(build).components["vision_encoder"].graphs["model"].path


def _session(graph: Path, threads: int, profile: Path | None = None) -> Any:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return session_from_onnx(graph, options, ["CPUExecutionProvider"])


def _ours(graph: Path, pixels: npt.NDArray[np.uint8], threads: int) -> Way:
    session = _session(graph, threads)
    return lambda: np.asarray(session.run(None, {"pixels": pixels})[0])


def _openvino(stack: ExitStack, build: Path, pixels: npt.NDArray[np.uint8], threads: int) -> Way:
    record = Manifest.read(build).components["vision_encoder"]
    graph = record.graphs["model"]
    runner = OpenVinoRunner(build / graph.path, graph.contract, record.precision, threads=threads)
    stack.enter_context(runner)
    return lambda: np.asarray(runner.infer({"pixels": pixels})["image_embeds"])


def operator_shares(
    graph: Path, pixels: npt.NDArray[np.uint8], threads: int, scratch: Path
) -> dict[str, float]:
    """What share of the graph's time each kind of operator takes, the greatest first."""
    session = _session(graph, threads, profile=scratch / "profile")
    for _ in range(3):
        session.run(None, {"pixels": pixels})
    taken: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"]
    total = sum(taken.values())
    return {name: round(spent / total, 3) for name, spent in taken.most_common(6)}


def _cosine(output: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    a, b = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main()
