"""What a format or a contract rules out, in files and messages: refused by name."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from iblip.export.artifact.manifest import MANIFEST, Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.directory import tensors_from_directory
from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.checkpoint.torch_files import tensors_from_torch_file
from iblip.export.errors import BuildDirectoryError, CheckpointError, OptionError
from iblip.export.originals.reading import checkpoint_from_original
from iblip.serving.doctor.builds import findings_of_build
from iblip.serving.doctor.machine import Machine
from iblip.serving.lint.checking import lint
from iblip.serving.repository.assembling import repository_from_engines
from iblip.serving.wire.names import PACKED
from iblip.serving.wire.parameters import (
    options_from_parameters,
    seconds_from_timeout,
    unpacked,
)

TENSORS = {
    "a": torch.ones(2, 3),
    "b.c": torch.zeros(4, dtype=torch.float16),
    "d": torch.ones(1),
}


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


SECOND = {**F32, "data_offsets": [4, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(a=F32, b={**F32, "data_offsets": [2, 6]}) + b"12345678", "'b' overlaps another"),
        (header(a=F32, b={**F32, "data_offsets": [6, 10]}) + b"1234567890", "'b' follows a gap"),
        (header(a={**F32, "data_offsets": [4, 8]}) + b"12345678", "'a' follows a gap, at byte"),
        (header(a=F32, b=F32) + b"1234", "'b' overlaps another"),
        (header(a=F32) + b"12345678", "its header describes"),
        (header(a=SECOND, b=F32) + b"1234", "its header describes"),
        (header(a={**F32, "shape": [2]}) + b"1234", r"'a' has 4 bytes, and F32 \[2\] 8"),
        (header(a={**F32, "shape": [2**40, 2**40]}) + b"1234", "'a' has 4 bytes, and F32"),
        (header(a={**F32, "shape": [-1]}) + b"1234", "the numbers 0 or more"),
        (header(a={**F32, "shape": [True]}) + b"1234", "the numbers 0 or more"),
        (header(a={**F32, "shape": [1.0]}) + b"1234", "the numbers 0 or more"),
        (header(a={**F32, "shape": None}) + b"1234", "the numbers 0 or more"),
        (header(a={**F32, "data_offsets": [4, 0]}) + b"1234", "expected begin and end"),
        (header(a={**F32, "data_offsets": [0, 2**64]}) + b"1234", "the numbers 0 or more"),
        (header(a={**F32, "data_offsets": [0]}) + b"1234", "expected begin and end"),
        (header(a={**F32, "dtype": 7}) + b"1234", "expected dtype, shape and data_offsets"),
        (header(a=None), "'a' is None; expected an object"),
        (
            header(**{"a\x1b[2J": F32}) + b"1234",
            r"the name 'a\\x1b\[2J' has characters that no name",
        ),
        ((2).to_bytes(8, "little") + b"[]", r"its header is \[\]; expected an object"),
        ((16).to_bytes(8, "little") + b'{"a":{},"a":{} }', "the key 'a' occurs twice"),
        ((10**6).to_bytes(8, "little") + b"[" * 10**6, "nested too deeply"),
        ((6008).to_bytes(8, "little") + b'{"a":' + b"9" * 6002 + b"}", "not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "cut off in its header"),
        (b"", "not a safetensors file"),
    ],
)
def test_a_safetensors_header_is_held_to_the_rules_of_the_format(data, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        tensors_from_safetensors(path)
    assert "\x1b" not in str(caught.value)


def test_what_the_format_allows_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [4, 4]}
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [4, 8]}
    path.write_bytes(header(s=scalar, e=empty, a=F32, __metadata__={"format": "pt"}) + b"12345678")
    found = tensors_from_safetensors(path)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "s": (),
        "e": (0, 7),
        "a": (1,),
    }


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "", "a\0b", 7, None, ["x"]])
def test_an_index_leads_nowhere_but_beside_it(place, tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    index = {"weight_map": {"a": place}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not the name of a file beside it"):
        tensors_from_directory(inside)


def test_a_hubs_cache_has_links_for_files(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model-1.safetensors").symlink_to("../blobs/0123")
    index = {"weight_map": dict.fromkeys(TENSORS, "model-1.safetensors")}
    (tmp_path / "snapshot" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert tensors_from_directory(tmp_path / "snapshot").keys() == TENSORS.keys()


def test_a_tensor_in_two_pieces_is_refused(tmp_path):
    for piece in ("x.safetensors", "y.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / piece)
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'a': in two pieces"):
        tensors_from_directory(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "vocab/x"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_checkpoint_is_refused_and_not_waited_for(name, kind, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{path} cannot be read: it is a pipe, a device"):
        checkpoint_from_directory(tmp_path)


@pytest.mark.parametrize("read", [tensors_from_safetensors, tensors_from_torch_file])
def test_a_part_that_is_a_pipe_or_a_device_is_refused(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="cannot be read: "):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a\x1b[2J"}, r"'a\\x1b\[2J' has characters that no name has"),
        (
            {"limits": {"slots": "8", "max_length": 1, "queue": 1, "images": 1}},
            "limits.slots is '8'",
        ),
        ({"created": None}, "created is None; expected str"),
        ({"components": {}}, "there is no component vision_encoder"),
        ({"surprise": 1}, "has 'surprise', which is no field"),
        ({"text": {"tokenizer": "/etc/passwd"}}, "'/etc/passwd' is outside of the build"),
        ({"text": {"tokenizer": "../../x"}}, "'../../x' is outside of the build"),
    ],
)
def test_a_manifest_is_held_to_its_types_and_its_directory(change, message, make_build):
    directory, manifest = make_build()
    data = {**manifest.to_json(), **change}
    (directory / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match=message) as caught:
        Manifest.read(directory)
    assert "\x1b" not in str(caught.value)


def test_a_graph_outside_of_its_build_is_refused(make_build):
    directory, manifest = make_build()
    record = manifest.components["qformer"]
    graph = replace(record.graphs["model"], path="graphs/../../x.onnx")
    components = {**manifest.components, "qformer": replace(record, graphs={"model": graph})}
    replace(manifest, components=components).write(directory)
    with pytest.raises(BuildDirectoryError, match="is outside of the build"):
        Manifest.read(directory)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({PACKED: "[" * 100_000}, "options_json is .*characters.*; expected a JSON object"),
        ({PACKED: '{"max_new_tokens": ' + "9" * 5000 + "}"}, "expected a JSON object"),
        ({"stop": "[" * 100_000 + "]" * 100_000}, "stop is .*; expected a list of .* non-empty"),
        ({"logit_bias": '{"' + "9" * 5000 + '": 1}'}, "a token in logit_bias is '9+'?… "),
        ({"max_new_tokens": 10**5000}, "max_new_tokens is an int that is too large to show"),
        ({"x" * 10**6: 1}, "there is no option 'x+…"),
    ],
)
def test_options_that_are_monstrous_are_refused_in_few_words(parameters, message):
    with pytest.raises(OptionError, match=message) as caught:
        options_from_parameters(unpacked(parameters))
    assert len(str(caught.value)) < 1500


def test_a_builds_copy_without_a_file_is_no_traceback(make_build):
    directory, manifest = make_build()
    repository_from_engines(directory, manifest)
    shutil.rmtree(directory / "graphs")
    assert not lint(directory).passed()
    assert "problem" in {one.verdict for one in findings_of_build(directory, Machine()).here}


def test_a_part_with_a_pipe_among_its_files_is_refused(tmp_path):
    language_model = tmp_path / "vicuna"
    language_model.mkdir()
    os.mkfifo(language_model / "config.json")
    parts = {"checkpoint": tmp_path / "x.pth", "vit": tmp_path / "vit.pth"}
    for path in parts.values():
        path.touch()
    parts["language_model"] = language_model
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: it is a pipe"):
        checkpoint_from_original("lavis", "blip2_vicuna_instruct/vicuna7b", parts)


@pytest.mark.parametrize(
    ("timeout_us", "told"),
    [(10**15 + 1, 10**15 + 1), (2**64 - 1, -1), (2**64, 2**64), (10**400, "1"), (-1, -1)],
)
def test_a_timeout_that_no_clock_can_tell_is_refused(timeout_us, told):
    with pytest.raises(OptionError, match=rf"is {told}.* expected 0 \(none\) to 10+ microseconds"):
        seconds_from_timeout(timeout_us)
    assert seconds_from_timeout(0) is None
    assert seconds_from_timeout(1_500_000) == 1.5
