"""Manifests as a build would have them, without graphs behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import (
    ComponentRecord,
    EngineRecord,
    GraphRecord,
    LanguageModelFacts,
    Manifest,
    Preprocessing,
    ServingLimits,
    TextFacts,
)

PIXELS = TensorSpec(name="pixels", dtype="uint8", axes=("batch", 48, 64, 3))
EMBEDS = TensorSpec(name="image_embeds", dtype="float16", axes=("batch", 17, 96))
IDS = TensorSpec(name="qformer_input_ids", dtype="int64", axes=("batch", "instruction"))
MASK = TensorSpec(name="qformer_attention_mask", dtype="int64", axes=("batch", "instruction"))
VISUAL = TensorSpec(name="visual_prompt", dtype="float32", axes=("batch", 8, 128))

NO_NODES = b"\x08\x0a\x3a\x00"
"""An ONNX file: its version, and a graph of nothing."""

NO_WORDS = '{"model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}'
"""A tokenizer's file."""


def component(kind: str, name: str, *, inputs: tuple[TensorSpec, ...], output: TensorSpec):
    contract = Contract(inputs=inputs, outputs=(output,))
    graph = GraphRecord(
        path=f"graphs/{name}/model.onnx", weights=(), digest="0" * 64, contract=contract
    )
    file = f"engines/{name}/model.plan" if kind == "tensorrt" else graph.path
    sizes = {"batch": [1, 2, 8]} | ({"instruction": [4, 32, 128]} if IDS in inputs else {})
    details = {"profiles": [sizes]} if kind.endswith("tensorrt") else {}
    engine = EngineRecord(kind=kind, files={"model": file}, details=details)
    return ComponentRecord(precision="fp32", graphs={"model": graph}, engine=engine)


def manifest_for(*, kind: str = "onnxruntime", instruction: bool = True) -> Manifest:
    qformer_inputs = (EMBEDS, IDS, MASK) if instruction else (EMBEDS,)
    return Manifest(
        name="small",
        family="instructblip",
        source={"path": "/nowhere", "files": {}},
        precision={"vision_encoder": "fp16", "qformer": "fp32", "language_model": "fp32"},
        components={
            "vision_encoder": component(kind, "vision_encoder", inputs=(PIXELS,), output=EMBEDS),
            "qformer": component(kind, "qformer", inputs=qformer_inputs, output=VISUAL),
        },
        preprocessing=Preprocessing(height=48, width=64, resample="BICUBIC"),
        text=TextFacts(
            tokenizer="text/tokenizer.json",
            qformer_tokenizer="text/qformer_tokenizer.json" if instruction else None,
            qformer_pad_token_id=0,
            max_instruction=128,
            images="frames",
        ),
        language_model=LanguageModelFacts(
            architecture="llama",
            is_encoder_decoder=False,
            hidden_size=128,
            num_layers=2,
            num_key_value_heads=2,
            head_dim=64,
            vocab_size=512,
            num_query_tokens=8,
            max_length=256,
            bos_token_id=1,
            pad_token_id=0,
            decoder_start_token_id=None,
            eos_token_ids=(2,),
            image_token_id=500,
            default_max_new_tokens=64,
        ),
        limits=ServingLimits(slots=3, max_length=200, queue=17, images=4),
        verification={"skipped": "a test"},
        tools={},
        created="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def make_build(tmp_path: Path) -> Callable[..., tuple[Path, Manifest]]:
    """A directory with a manifest, and files in the place of plans and graphs."""

    def make(**options) -> tuple[Path, Manifest]:
        manifest = manifest_for(**options)
        directory = tmp_path / "build"
        directory.mkdir()
        manifest.write(directory)
        for name, record in manifest.components.items():
            file = directory / record.engine.files["model"]
            file.parent.mkdir(parents=True)
            content = f"plan of {name}".encode() if file.suffix == ".plan" else NO_NODES
            file.write_bytes(content)
        for path in (manifest.text.tokenizer, manifest.text.qformer_tokenizer):
            if path is not None:
                (directory / path).parent.mkdir(exist_ok=True)
                (directory / path).write_text(NO_WORDS)
        return directory, manifest

    return make
