"""Vision encoder and Q-Former on OpenVINO, against ONNX Runtime on the same graphs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iblip.engines.onnxruntime.saturation import integers_saturate
from iblip.engines.pipeline import Pipeline
from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import ContractError, EngineError
from iblip.export.quantisation.options import QuantisationOptions
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, EngineOptions
from tests.fixtures.sharing import MakeOnce

pytest.importorskip("openvino")

COSINES: Mapping[str, float] = {
    "fp32": 0.999999,
    "fp16": 0.9999,
    "bf16": 0.9999,
    "int8": 0.998 if integers_saturate() else 0.9995,
}
"""Least cosine to ONNX Runtime by precision; in `int8` attention alone may be in bfloat16."""


@pytest.fixture(params=list(COSINES))
def directory(request: pytest.FixtureRequest, checkpoints: Path, make_once: MakeOnce) -> Path:
    word = request.param

    def write(directory: Path) -> None:
        options = BuildOptions(
            source=ModelSource(model=str(checkpoints / "instructblip-demo-vicuna")),
            output=directory,
            precision=f"vision_encoder={word},qformer={word}",
            quantisation=QuantisationOptions(int8="static" if word == "int8" else None),
            engines=EngineOptions(engine="openvino"),
            verification=None,
        )
        with pytest.MonkeyPatch.context() as patch:  # any processor runs what another one builds
            patch.setattr("iblip.engines.openvino.graph.multiplies_bfloat16", lambda: True)
            build(options)

    return make_once(f"demo-builds/openvino-{word}", write)


def pixels(manifest: Manifest, count: int) -> np.ndarray:
    height, width = manifest.preprocessing.height, manifest.preprocessing.width
    shape = count, height, width, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def visual_prompts(directory: Path, manifest: Manifest, images: np.ndarray) -> np.ndarray:
    with Pipeline(directory, manifest=manifest) as pipeline:
        prompts = ["What colour is it?", "How many dots are there in all?"] * len(images)
        return np.asarray(
            pipeline.visual_prompt(pipeline.encode_image(images), prompts[: len(images)])
        )


def test_visual_prompts_are_those_of_onnx_runtime(directory: Path) -> None:
    manifest = Manifest.read(directory)
    kinds = {name: record.engine.kind for name, record in manifest.components.items()}
    assert kinds == {
        "vision_encoder": "openvino",
        "qformer": "openvino",
        "language_model": "onnxruntime",
    }
    components = {
        name: replace(record, engine=replace(record.engine, kind="onnxruntime"))
        for name, record in manifest.components.items()
    }
    other = replace(manifest, components=components)
    images = pixels(manifest, 3)
    found = visual_prompts(directory, manifest, images).astype(np.float64).ravel()
    wanted = visual_prompts(directory, other, images).astype(np.float64).ravel()
    cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine > COSINES[manifest.components["vision_encoder"].precision]


def test_rows_are_the_same_alone_together_and_at_once(directory: Path) -> None:
    manifest = Manifest.read(directory)
    images = pixels(manifest, 5)
    with open_runner(directory, manifest, "vision_encoder") as runner:

        def encode(rows: np.ndarray) -> np.ndarray:
            return runner.infer({"pixels": rows})["image_embeds"]

        together = encode(images)
        with ThreadPoolExecutor(5) as pool:
            alone = np.concatenate(list(pool.map(encode, np.split(images, 5))))
    largest = np.abs(together.astype(np.float32)).max()
    assert np.abs(alone.astype(np.float32) - together.astype(np.float32)).max() < 1e-5 * largest
    assert len({row.tobytes() for row in alone}) == 5


def test_what_cannot_run_is_refused(directory: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(directory)
    runner = open_runner(directory, manifest, "vision_encoder")
    with pytest.raises(EngineError, match="not open: use it in a `with` block"):
        runner.infer({"pixels": pixels(manifest, 1)})
    with runner, pytest.raises(ContractError, match="'pixels' is float32, expected uint8"):
        runner.infer({"pixels": pixels(manifest, 1).astype(np.float32)})
    with pytest.raises(EngineError, match=r"there is no graph .*build it again"):
        open_runner(tmp_path, manifest, "vision_encoder").__enter__()
