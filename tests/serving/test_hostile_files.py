"""Every reader of a file or a message, given thousands of damaged ones: only the project's errors.

A failure names the number of its mutation, which the seed makes again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import Answer, Timing
from iblip.export.artifact.manifest import MANIFEST, Manifest, Preprocessing
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.directory import tensors_from_directory
from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.checkpoint.torch_files import tensors_from_torch_file
from iblip.export.errors import BuildDirectoryError, OptionError
from iblip.export.images import pixels_from_image
from iblip.serving.doctor.builds import findings_of_build
from iblip.serving.doctor.machine import Machine
from iblip.serving.lint.checking import lint
from iblip.serving.repository.assembling import repository_from_engines
from iblip.serving.repository.model_config import read_config
from iblip.serving.repository.onnx_files import onnx_faults
from iblip.serving.wire.answers import answer_from_finish, finish_from_answer
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.names import PACKED
from iblip.serving.wire.parameters import (
    options_from_parameters,
    parameters_from_options,
    unpacked,
)
from tests.cases import exhaustive
from tests.mutations import damaged_bytes, damaged_json, survivors

TENSORS = {
    "a": torch.ones(2, 3),
    "b.c": torch.zeros(4, dtype=torch.float16),
    "d": torch.ones(1),
}
SMALL = Preprocessing(height=8, width=8, resample="BICUBIC")


@dataclass(frozen=True)
class Reader:
    """What is damaged, and what reads it.

    Attributes:
        damage: from a random generator to a damaged input.
        read: what is asked to read it.
        count: of mutations in `make test`; slow readers get fewer.
    """

    damage: Callable[[random.Random], Any]
    read: Callable[[Any], object]
    count: int = 300


def written(path: Path, read: Callable[[Path], object], given: str | bytes) -> object:
    """Reads a file with that content."""
    data = given.encode(errors="surrogatepass") if isinstance(given, str) else given
    path.write_bytes(data)
    return read(path)


def read_all(path: Path, read: Callable[[Path], Any]) -> None:
    """Opens a file of tensors and reads each that a graph could take."""
    for tensor in read(path).values():
        if tensor.dtype in ("float32", "float16") and tensor.shape:
            assert tensor.read().shape == tensor.shape


def safetensors_header(directory: Path) -> Reader:
    path = directory / "model.safetensors"
    save_file(TENSORS, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8:end]), data[end:]

    def damage(dice: random.Random) -> bytes:
        text = damaged_json(header, dice).encode(errors="surrogatepass")
        return len(text).to_bytes(8, "little") + text + rest

    read = partial(read_all, read=tensors_from_safetensors)
    return Reader(damage, partial(written, path, read))


def safetensors_bytes(directory: Path) -> Reader:
    path = directory / "model.safetensors"
    save_file(TENSORS, path)
    read = partial(read_all, read=tensors_from_safetensors)
    return Reader(partial(damaged_bytes, path.read_bytes()), partial(written, path, read))


def index_of_shards(directory: Path) -> Reader:
    save_file(TENSORS, directory / "model-1.safetensors")
    save_file({"z": torch.ones(1)}, directory / "model-2.safetensors")
    places = {**dict.fromkeys(TENSORS, "model-1.safetensors"), "z": "model-2.safetensors"}
    index = {"metadata": {"total_size": 36}, "weight_map": places}
    path = directory / "model.safetensors.index.json"
    read = partial(written, path, lambda path: tensors_from_directory(path.parent))
    return Reader(partial(damaged_json, index), read)


def torch_file(directory: Path) -> Reader:
    path = directory / "pytorch_model.bin"
    torch.save({"model": {**TENSORS, "t": torch.arange(12.0).reshape(3, 4).t()}, "epoch": 3}, path)
    read = partial(read_all, read=tensors_from_torch_file)
    return Reader(partial(damaged_bytes, path.read_bytes()), partial(written, path, read), 40)


def checkpoint_config(directory: Path) -> Reader:
    demo = Path(__file__).parents[2] / "checkpoints" / "instructblip-demo-vicuna"
    for file in demo.iterdir():
        if file.is_file() and file.name != "config.json":
            os.link(file, directory / file.name)
    config = json.loads((demo / "config.json").read_text())
    read = partial(
        written, directory / "config.json", lambda p: checkpoint_from_directory(p.parent)
    )
    return Reader(partial(damaged_json, config), read, 25)


def manifest_of_build(directory: Path, manifest: Manifest) -> Reader:
    path = directory / MANIFEST

    def read(path: Path) -> None:
        lint(directory)
        findings_of_build(directory, Machine())  # tells what is wrong, and raises nothing
        ServerContract.from_manifest(Manifest.read(directory))

    data = {"source": {}, **json.loads(json.dumps(manifest.to_json()))}
    return Reader(partial(damaged_json, data), partial(written, path, read), 40)


def model_config(directory: Path) -> Reader:
    path = directory / "model_repository" / "qformer" / "config.pbtxt"
    text = path.read_bytes()
    deep = b"".join([b"parameters { key: 'x' value { "] * 2000)

    def damage(dice: random.Random) -> bytes:
        return deep if dice.random() < 0.01 else damaged_bytes(text, dice)

    def read(path: Path) -> None:
        lint(path.parents[1])
        read_config(path)

    return Reader(damage, partial(written, path, read), 30)


def onnx_graph(directory: Path) -> Reader:
    path = directory / "model.onnx"
    graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model = onnx.helper.make_model(graph)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)

    def read(path: Path) -> None:
        for fault in onnx_faults(path):  # they are yielded
            raise BuildDirectoryError(fault)

    return Reader(partial(damaged_bytes, path.read_bytes()), partial(written, path, read))


def mapping_from(text: str) -> dict[str, Any]:
    """What a program has read of JSON and passes on as options; nothing where it cannot."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {}


def wire_options(directory: Path) -> Reader:
    options = GenerationOptions(
        max_new_tokens=9, temperature=0.5, stop=("#",), logit_bias={3: 1.5}, stop_token_ids=(1,)
    )
    parameters = {**parameters_from_options(options), "top_k": 3}

    def damage(dice: random.Random) -> str:
        if dice.random() < 0.5:
            return damaged_json(parameters, dice)
        name = dice.choice(("stop", "logit_bias", "stop_token_ids", "banned_words"))
        inner = damaged_json({"13": -5.5, "x": [1, "a", None]}, dice)
        return json.dumps({**parameters, name: inner})

    def read(text: str) -> None:
        with contextlib.suppress(OptionError):
            GenerationOptions.from_mapping(mapping_from(text))
        options_from_parameters(unpacked({PACKED: text}))

    return Reader(damage, read, 500)


def answers_finish(directory: Path) -> Reader:
    answer = Answer(
        text="a 7",
        token_ids=(3, 4),
        finish_reason="stop",
        prompt_tokens=9,
        completion_tokens=2,
        seed=5,
        timing=Timing(vision_s=0.4, queue_s=0.1, prefill_s=0.2, decode_s=0.3),
    )
    finish = json.loads(finish_from_answer(answer))
    return Reader(partial(damaged_json, finish), partial(answer_from_finish, ""))


def servers_contract(directory: Path, manifest: Manifest) -> Reader:
    parameters = ServerContract.from_manifest(manifest).to_parameters()

    def damage(dice: random.Random) -> dict[str, str]:
        name = dice.choice(sorted(parameters))
        return {**parameters, name: damaged_json(json.loads(parameters[name]), dice)}

    return Reader(damage, ServerContract.from_parameters)


def images(directory: Path) -> Reader:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    seeds = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        seeds.append(file.getvalue())

    def damage(dice: random.Random) -> bytes:
        return damaged_bytes(dice.choice(seeds), dice)

    return Reader(damage, lambda data: pixels_from_image(data, SMALL))


ALONE = (
    safetensors_header,
    safetensors_bytes,
    index_of_shards,
    torch_file,
    checkpoint_config,
    onnx_graph,
    wire_options,
    answers_finish,
    images,
)
OF_BUILDS = (manifest_of_build, model_config, servers_contract)
TIMES = [1, exhaustive(75)]
"""How often the table's numbers: about 2,700 mutations in all, or 200,000."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("make", ALONE)
def test_a_damaged_input_is_refused_by_name_or_read(make, times, tmp_path):
    reader = make(tmp_path)
    count = reader.count * times
    assert survivors(count, seed=times, damage=reader.damage, read=reader.read) < count


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("make", OF_BUILDS)
def test_a_damaged_build_is_refused_by_name_or_read(make, times, make_build):
    directory, manifest = make_build()
    repository_from_engines(directory, manifest)
    needed = (directory,) if make is model_config else (directory, manifest)
    reader = make(*needed)
    count = reader.count * times
    assert survivors(count, seed=times, damage=reader.damage, read=reader.read) < count
