"""Builds of a checkpoint with an adapter: what they hold, record, and are built anew for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.numpy_helper import to_array
from PIL import Image
from safetensors.torch import load_file, save_file

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.checkpoint.source import ModelSource, adapters_from_words
from iblip.export.opening import checkpoint_from_source, source_of_build
from iblip.export.progress import Silent
from iblip.export.system.files import sha256
from iblip.export.system.installing import MissingPackageError
from iblip.export.verification.references import reference_of
from iblip.serving.builder.build import build
from iblip.serving.builder.inputs import find_difference, inputs_of
from iblip.serving.builder.options import BuildOptions
from iblip.serving.builder.settling import settle
from tests.fixtures.sharing import MakeOnce

TARGETS = ["q_proj", "query", "self_attn.qkv"]


@pytest.fixture(scope="module")
def adapter(random_checkpoint: Callable[[str], Path], make_once: MakeOnce) -> Path:
    """A LoRA of language model, Q-Former and ViT, as peft saves it."""

    def write(directory: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import InstructBlipForConditionalGeneration

        model = InstructBlipForConditionalGeneration.from_pretrained(random_checkpoint("llama"))
        adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
        torch.manual_seed(0)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
        adapted.save_pretrained(directory)

    return make_once("adapters/llama", write)


@pytest.fixture(scope="module")
def adapted_build(
    random_checkpoint: Callable[[str], Path], adapter: Path, make_once: MakeOnce
) -> Path:
    """A build that was compared with transformers and peft, graph by graph."""
    options = asked(random_checkpoint("llama"), adapter)
    return make_once("builds/llama-adapted", lambda path: build(options(output=path)))


def asked(base: Path, *adapters: Path) -> Callable[..., BuildOptions]:
    source = ModelSource(model=str(base), adapters=adapters_from_words(adapters))
    return lambda **options: BuildOptions(source=source, **options)


def initializers(build: Path) -> Mapping[str, Any]:
    graphs = (build / "graphs").rglob("*.onnx")
    return {
        tensor.name: read(tensor, graph.parent)
        for graph in graphs
        if not graph.name.endswith(".cuda.onnx")
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer
    }


def read(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    """Onnx's own reader refuses files that have several hard links, as those of a build do."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    if not place:
        return to_array(tensor)
    start, length = int(place["offset"]), int(place["length"])
    data = (folder / place["location"]).read_bytes()[start : start + length]
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(data, kind).reshape(tensor.dims)


def test_graphs_read_what_is_merged_and_link_what_is_not(
    adapted_build: Path, random_checkpoint: Callable[[str], Path], adapter: Path
) -> None:
    base, stored = (
        load_file(random_checkpoint("llama") / "model.safetensors"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    found = initializers(adapted_build)
    for module in (
        "language_model.model.layers.1.self_attn.q_proj",
        "qformer.encoder.layer.0.attention.attention.query",
        "vision_model.encoder.layers.0.self_attn.qkv",
    ):
        a, b = (stored[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        expected = base[f"{module}.weight"] + 2 * b @ a
        np.testing.assert_allclose(found[f"{module}.weight"], expected, rtol=1e-5, atol=1e-6)
    source = (random_checkpoint("llama") / "model.safetensors").stat().st_ino
    for component in ("vision_encoder", "qformer", "language_model"):
        assert (adapted_build / "graphs" / component / "model.safetensors").stat().st_ino == source
    assert not list(adapted_build.rglob("adapter_model*"))


def test_the_manifest_says_which_adapters_and_what_they_were(
    adapted_build: Path, adapter: Path, random_checkpoint: Callable[[str], Path]
) -> None:
    manifest = Manifest.read(adapted_build)
    assert manifest.source["adapters"] == [str(adapter)]
    assert manifest.name == f"{random_checkpoint('llama').name}+{adapter.name}"
    digest = manifest.source["files"]["adapter-1/adapter_model.safetensors"]
    assert digest == sha256(adapter / "adapter_model.safetensors")
    assert "adapter-1/adapter_config.json" in manifest.source["files"]
    data = json.loads((adapted_build / "manifest.json").read_text())
    assert f"--adapter {adapter}" in rebuild_command(adapted_build, data)
    assert manifest.verification["graphs"].keys() >= {"vision_encoder/model", "qformer/model"}
    opened = checkpoint_from_source(source_of_build(adapted_build), Silent())
    assert opened.digests() == manifest.source["files"]
    moved = source_of_build(adapted_build, adapters=["/moved"])
    assert [str(name) for name in moved.adapters] == ["/moved"]


def test_a_build_is_made_anew_where_its_adapter_is_another(
    adapted_build: Path, adapter: Path, random_checkpoint: Callable[[str], Path]
) -> None:
    base = random_checkpoint("llama")

    def difference(*adapters: Path) -> str | None:
        options = asked(base, *adapters)(output=adapted_build)
        return find_difference(adapted_build, inputs_of(settle(options, Silent())))

    assert difference(adapter) is None
    assert difference() == "--model is another"
    file = adapter / "adapter_model.safetensors"
    before = file.read_bytes()
    save_file({n: 2 * t for n, t in load_file(file).items()}, file)
    try:
        assert difference(adapter) == f"{file} has changed"
    finally:
        file.write_bytes(before)


def test_without_peft_a_build_that_would_be_compared_is_refused_at_once(
    adapter: Path, random_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iblip.export.system.installing.find_spec", lambda name: None)
    options = asked(random_checkpoint("llama"), adapter)
    with pytest.raises(MissingPackageError, match=r"Run `pip install peft`, or .* --no-verify"):
        settle(options(), Silent())
    assert settle(options(verification=None), Silent()).verification is None


def test_a_directory_that_peft_has_merged_is_the_build_with_its_adapter(
    adapted_build: Path, adapter: Path, random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

    base = random_checkpoint("llama")
    model = InstructBlipForConditionalGeneration.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    InstructBlipProcessor.from_pretrained(base).save_pretrained(tmp_path / "merged")
    found = build(asked(tmp_path / "merged")(output=tmp_path / "build"))
    assert Manifest.read(found).verification["graphs"].keys() >= {"vision_encoder/model"}
    ours, theirs = initializers(adapted_build), initializers(found)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    # Beside the weights, not merged, peft gives the same answers.
    opened = checkpoint_from_source(asked(base, adapter)(output=found).source, Silent())
    reference = reference_of(opened)
    rng = np.random.default_rng(0)
    with Pipeline(found) as pipeline:
        for prompt in ("which digit is red", "how many", "red"):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            (expected,) = reference.generate([Image.fromarray(pixels)], [prompt], max_new_tokens=8)
            answer = pipeline.answer(pixels, prompt, GenerationOptions(max_new_tokens=8))
            assert answer.text == expected.text


def test_builds_of_two_adapters_share_all_that_neither_changes(
    random_checkpoint: Callable[[str], Path], adapter: Path, tmp_path: Path
) -> None:
    base, other = random_checkpoint("llama"), tmp_path / "other"
    other.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    (other / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
    builds = [
        build(asked(base, one)(output=tmp_path / f"build-{one.name}", verification=None))
        for one in (adapter, other)
    ]
    file = base / "model.safetensors"
    ours, theirs = (
        {
            path.relative_to(found): path.stat()
            for path in (found / "graphs").rglob("*")
            if path.suffix in (".safetensors", ".weights")
        }
        for found in builds
    )
    linked = [path for path in ours if path.suffix == ".safetensors"]
    assert len(linked) == 3  # one in each component
    for path in linked:
        assert ours[path].st_ino == theirs[path].st_ino == file.stat().st_ino
    # What each has of its own is what its adapter changes, in float32.
    changed = sum(
        values.nbytes
        for name, values in initializers(builds[0]).items()
        if any(name.endswith(f".{target}.weight") for target in TARGETS)
    )
    own = {status.st_ino: status.st_size for p, status in ours.items() if p not in linked}
    assert changed <= sum(own.values()) < 1.5 * changed < file.stat().st_size
    assert not own.keys() & {status.st_ino for status in theirs.values()}
