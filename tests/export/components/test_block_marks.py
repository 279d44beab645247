"""The residual stream of every written graph: one named value a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.exporter import graphs_from_checkpoint
from iblip.export.graph.trace_cache import TraceCache
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent
from tests.cases import exhaustive

VISION = ["vision_model.encoder.layers.0.output", "vision_model.encoder.layers.1.output"]
QFORMER = ["qformer.encoder.layer.0.output", "qformer.encoder.layer.1.output"]
LLAMA = ["language_model.model.layers.0.output", "language_model.model.layers.1.output"]
T5_ENCODER, T5_DECODER, OPT = (
    [f"language_model.{stack}.{index}.output" for index in range(2)]
    for stack in ("encoder.block", "decoder.block", "model.decoder.layers")
)
OUTPUTS = {
    "vicuna": {"decoder": LLAMA, "batched_decoder": LLAMA},
    "flant5": {"encoder": T5_ENCODER, "decoder": T5_DECODER, "batched_decoder": T5_DECODER},
    "opt": {"decoder": OPT, "batched_decoder": OPT},
    "minigpt4": {"decoder": LLAMA, "batched_decoder": LLAMA},
    "minigpt4-merge": {"decoder": LLAMA, "batched_decoder": LLAMA},
}


CASES = [
    *((kind, "fp32") for kind in OUTPUTS),
    *((kind, "fp16") for kind in ("vicuna", "flant5", "opt")),
    *(exhaustive(kind, "fp16") for kind in ("minigpt4", "minigpt4-merge")),
    ("opt", "int4"),
    *(exhaustive(kind, "int4") for kind in OUTPUTS if kind != "opt"),
]


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_the_result_of_every_block_has_the_blocks_name(
    tiny: Callable[[str], Path], traces: TraceCache, kind: str, precision: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_from_directory(tiny(kind))
    policy = PrecisionPolicy.parse(precision)
    wanted = {
        ("vision_encoder", "model"): VISION,
        ("qformer", "model"): [] if kind == "minigpt4-merge" else QFORMER,
        ("language_model", "embed_tokens"): [],
    } | {("language_model", name): outputs for name, outputs in OUTPUTS[kind].items()}
    found = {}
    for graph in graphs_from_checkpoint(checkpoint, policy, tmp_path, Silent(), traces=traces):
        proto = onnx.load(graph.path, load_external_data=False)
        made = [name for node in proto.graph.node for name in node.output]
        found[graph.component, graph.name] = [n for n in made if n.endswith(".output")]
        assert {entry.domain for entry in proto.opset_import} <= {"", "com.microsoft"}
    assert found == wanted
