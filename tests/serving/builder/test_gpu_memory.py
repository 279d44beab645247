"""The memory that a build plans of a GPU, against its graphs and the released models' sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.memory import MEMORY, USUAL_CARD
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import OptionError
from iblip.export.models.table import MODELS
from iblip.export.progress import Silent
from iblip.export.synthesis import checkpoint as synthesis
from iblip.export.synthesis import shards
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, EngineOptions, LimitOptions, VllmOptions
from iblip.serving.builder.settling import settle
from iblip.serving.cli import export
from tests.cases import exhaustive

GB = 10**9
VICUNA = "instructblip-demo-vicuna"
ON_CUDA = EngineOptions(engine="onnxruntime-cuda", llm_engine="onnxruntime-cuda")
SMALL = "vision_encoder=fp16,qformer=fp16,language_model=int4"


class Notes(Silent):
    """What a build says while it is settled."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def on_device(path: Path) -> int:
    """Bytes of a graph's weights as a GPU keeps them: those that it casts first, in float32."""
    graph = onnx.load(path, load_external_data=False).graph
    widened = {
        node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT
    }
    total = 0
    for tensor in graph.initializer:
        length = next((int(e.value) for e in tensor.external_data if e.key == "length"), 0)
        total += 2 * length if tensor.name in widened else length
    return total


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (VICUNA, SMALL),
        exhaustive(VICUNA, "fp16"),
        ("blip2-demo-flant5", "fp16"),  # its file is fp16, and `wo` is computed in float32
        exhaustive("blip2-demo-flant5", SMALL),
        exhaustive("blip2-demo-opt", "fp16"),  # whose head is its table of embeddings
        exhaustive("blip2-demo-opt", SMALL),
    ],
)
def test_a_build_records_what_its_graphs_take(
    name: str, precision: str, checkpoints: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        source=ModelSource(model=str(checkpoints / name)),
        precision=precision,
        engines=ON_CUDA,
        limits=LimitOptions(max_length=128),
        output=tmp_path / "built",
        verification=None,
    )
    directory = build(options)
    manifest = Manifest.read(directory)
    for component, record in manifest.components.items():
        # `decoder` is not served, and the table of tokens lies in `batched_decoder` or on the CPU.
        served = [graph for graph in record.graphs if graph not in ("decoder", "embed_tokens")]
        taken = sum(on_device(directory / record.graphs[graph].path) for graph in served)
        planned = record.engine.details[MEMORY]["weights"]
        assert planned == pytest.approx(taken, rel=0.001), component


@pytest.fixture
def at_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Checkpoints of released models' shapes, whose files have no bytes on the disk."""

    def make_hole(weights: Any, name: str, file: int, offset: int, advance: Any) -> None:
        os.pwrite(file, b"\0", offset + weights.nbytes(name) - 1)  # threads share the file

    monkeypatch.setattr(shards, "_write_tensor", make_hole)
    monkeypatch.setattr(synthesis, "_check_space", lambda size, destination: None)

    def make(name: str) -> Path:
        directory = tmp_path / name
        model = MODELS[name]
        synthesis.synthesize(synthesis.Synthesis(model=model, dtype="float16"), directory)
        return directory

    return make


def settled(model: Path, precision: str, *, notes: Notes | None = None, **given: Any) -> Any:
    """A build's plan, with `gpu_memory`, `slots`, `max_length`, `llm_engine`, `share`."""
    engine = {"llm_engine": given.pop("llm_engine", "onnxruntime-cuda")}
    share = given.pop("share", None)
    options = BuildOptions(
        source=ModelSource(model=str(model)),
        precision=precision,
        engines=EngineOptions(
            engine="onnxruntime-cuda", gpu_memory=given.pop("gpu_memory", None), **engine
        ),
        vllm=VllmOptions(gpu_memory_utilization=share),
        limits=LimitOptions(**given),
    )
    return settle(options, notes or Notes())


def test_vicuna_7b_fits_24_gb_by_default_and_says_what_was_chosen(
    at_size: Callable[[str], Path],
) -> None:
    model, notes = at_size("instructblip-vicuna-7b"), Notes()
    build = settled(model, "fp16", notes=notes, gpu_memory=24 * GB)
    plan = build.memory
    assert plan.fits
    assert (build.limits.slots, build.limits.max_length) == (plan.slots, plan.positions)
    assert plan.slots == 8
    assert 512 <= plan.positions < 2048
    assert any("8 slots of" in text and "24.0 GB" in text for text in notes.said)
    rows = {row.component: row for row in plan.components}
    parts = MODELS["instructblip-vicuna-7b"].parameters
    for component, count in (
        ("vision_encoder", parts["vision_encoder"]),
        ("qformer", parts["qformer"] + parts["projection"]),
        ("language_model", parts["language_model"]),
    ):
        assert rows[component].weights == pytest.approx(2 * count, rel=0.01)
        assert rows[component].work < GB
    assert plan.position == 2 * 32 * 4096 * 2
    # Four bits, and a scale of 16 for each 32 weights; the table of embeddings stays.
    small = settled(model, SMALL, gpu_memory=24 * GB).memory
    own = {row.component: row.weights for row in small.components}["language_model"]
    table = 32001 * 4096
    assert own == pytest.approx((parts["language_model"] - table) * 4.5 / 8 + 2 * table, rel=0.01)
    assert (small.slots, small.positions) == (8, 2048)
    asked = "(?s)does not fit the GPU.*WHICH DOES NOT FIT.*8 slots of 2,048 positions.*--slots"
    with pytest.raises(OptionError, match=asked):
        settled(model, "fp16", gpu_memory=24 * GB, slots=8, max_length=2048)
    # vLLM takes what the others leave, for as many sequences as it usually has.
    pooled = settled(model, "fp16", gpu_memory=24 * GB, llm_engine="vllm")
    assert pooled.limits.slots == 64
    assert pooled.memory.pooled
    assert pooled.memory.caches < pooled.memory.full
    with pytest.raises(OptionError, match=r"--gpu-memory-utilization is 0\.9: .* At most 0\.8"):
        settled(model, "fp16", gpu_memory=24 * GB, llm_engine="vllm", share=0.9)


@pytest.mark.skipif(has_nvidia_gpu(), reason="what is chosen without a GPU")
def test_without_a_card_defaults_are_for_the_usual_one(checkpoints: Path) -> None:
    plan = settled(checkpoints / VICUNA, "fp16").memory
    assert plan.card is None
    assert plan.total < USUAL_CARD
    assert (plan.slots, plan.positions) == (8, 1024)


def test_a_card_too_small_for_the_default_gets_fewer_and_what_is_asked_is_refused(
    checkpoints: Path,
) -> None:
    model = checkpoints / VICUNA
    whole = settled(model, "fp16", gpu_memory=8 * GB).memory
    card = int((whole.fixed + whole.caches * 0.7) / 0.97)
    fewer = settled(model, "fp16", gpu_memory=card)
    assert fewer.memory.fits
    assert fewer.limits.max_length < 1024
    with pytest.raises(OptionError, match="does not fit the GPU"):
        settled(model, "fp16", gpu_memory=card, slots=8, max_length=1024)
    with pytest.raises(OptionError, match="Everything but keys and values takes"):
        settled(model, "fp16", gpu_memory=GB)
    frames = settled(model, "fp16", gpu_memory=card, max_images=6)
    assert frames.limits.max_length >= 6 * 32 + 2


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(export, ["build", "--dry-run", *arguments])


def test_a_dry_run_prints_the_plan(tmp_path: Path) -> None:
    arguments = ["--engine", "onnxruntime-cuda", "--precision", SMALL, "--gpu-memory", "24GB"]
    told = invoke(*arguments, "--output", str(tmp_path / "built"))
    assert told.exit_code == 0, told.stderr
    assert "GPU memory of a card of 22.35 GiB: " in told.stdout
    assert "which fits" in told.stdout
    assert "8 slots of 1,024 positions" in told.stdout
    data = json.loads(invoke(*arguments, "--json").stdout)["gpu_memory"]
    assert data["fits"] is True
    assert [row["component"] for row in data["components"]] == [
        "vision_encoder",
        "qformer",
        "language_model",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-memory", "24"], "--gpu-memory is '24'; expected a size above 0 with one of"),
        (["--gpu-memory", "24GB"], "--gpu-memory is for engines on a GPU, and this build runs on"),
        (["--engine", "onnxruntime-cuda", "--precision", "fp16", "--gpu-memory", "1GB"], "not fit"),
    ],
)
def test_a_card_that_means_nothing_is_refused(arguments: list[str], message: str) -> None:
    told = invoke(*arguments)
    assert told.exit_code == 2
    assert message in told.stderr
