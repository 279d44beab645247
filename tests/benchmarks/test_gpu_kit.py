"""The parts of the kit for a GPU machine that need neither a GPU nor stubs of one."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from benchmarks.gpu.facts import FACTS, Facts, read_facts
from benchmarks.gpu.make_kit import REPOSITORY, WEIGHTS, Transfer, bytes_beside, pack
from benchmarks.gpu.records import table_of, write_records
from benchmarks.gpu.slim import slim_build
from benchmarks.gpu.true_size import SMALL, fill_build, strip_build

CARRY = REPOSITORY / "benchmarks" / "gpu" / "carry.sh"

GAP = 4096
"""Bytes of the file of weights before and behind each tensor, which no graph reads."""


@pytest.fixture
def build(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A directory like a build's, with one graph, and the tensors in its file of weights."""
    random, folder = np.random.default_rng(0), tmp_path / "build" / "graphs" / "vision_encoder"
    tensors = {
        "matrix": random.standard_normal((300, 256)).astype(np.float32),
        "bias": random.standard_normal(256).astype(np.float32),
    }
    folder.mkdir(parents=True)
    content, stored = random.bytes(GAP), []
    for name, value in tensors.items():
        tensor = numpy_helper.from_array(value, name)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = {"location": "model.weights", "offset": len(content), "length": value.nbytes}
        for key, place in places.items():
            tensor.external_data.add(key=key, value=str(place))
        content += value.tobytes() + random.bytes(GAP)
        stored.append(tensor)
    (folder / "model.weights").write_bytes(content)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "matrix", "bias"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 300])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 256])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    (tmp_path / "build" / "references").mkdir()
    (tmp_path / "build" / "references" / "references.json").write_text("{}")
    for name in ("manifest.json", "inputs.json"):
        (tmp_path / "build" / name).write_text(name)
    return tmp_path / "build", tensors


def run_graph(build: Path) -> np.ndarray:
    path = build / "graphs" / "vision_encoder" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 300), np.float32)})[0]


def test_a_slim_build_has_its_graphs_bytes_and_no_others(build, tmp_path):
    source, tensors = build
    slim_build(source, tmp_path / "slim")
    np.testing.assert_array_equal(run_graph(tmp_path / "slim"), run_graph(source))
    weights = Path("graphs") / "vision_encoder" / "model.weights"
    whole, slim = (
        np.fromfile(folder / weights, np.uint8) for folder in (source, tmp_path / "slim")
    )
    assert len(whole) == len(slim)
    assert np.count_nonzero(whole != slim) == np.count_nonzero(whole) - np.count_nonzero(slim)
    assert np.count_nonzero(slim) <= sum(value.nbytes for value in tensors.values())
    assert not slim[:GAP].any()
    copied = {path.name for path in (tmp_path / "slim").rglob("*") if path.is_file()}
    assert copied == {"manifest.json", "model.onnx", "model.weights", "references.json"}


def test_weights_that_are_cut_off_are_refused(build, tmp_path):
    source, _ = build
    weights = source / "graphs" / "vision_encoder" / "model.weights"
    weights.write_bytes(weights.read_bytes()[: -GAP - 1])
    with pytest.raises(ValueError, match="ends before"):
        slim_build(source, tmp_path / "slim")


def test_weights_of_true_size_are_made_where_they_are_needed(build, tmp_path):
    source, tensors = build
    stripped = tmp_path / "stripped"
    strip_build(source, stripped)
    weights = stripped / "graphs" / "vision_encoder" / "model.weights"
    assert not weights.exists()
    assert sum(path.stat().st_size for path in stripped.rglob("*") if path.is_file()) < SMALL
    assert fill_build(stripped) == sum(value.nbytes for value in tensors.values())
    content = weights.read_bytes()
    assert len(content) == (source / weights.relative_to(stripped)).stat().st_size
    size = tensors["matrix"].nbytes
    made = np.frombuffer(content[GAP : GAP + size], np.float32)
    assert 0.015 < made.std() < 0.025
    assert tensors["bias"].tobytes() in content
    assert np.isfinite(run_graph(stripped)).all()


HEAD = {
    "format": 1,
    "build": "a",
    "precision": {"vision_encoder": "fp16", "qformer": "fp16"},
    "gpu": {"name": "a GPU"},
    "driver": "580.1",
}


def test_facts_of_a_run_that_was_cut_short_are_read(tmp_path):
    with Facts(tmp_path) as facts:
        facts.write("a-fp16", HEAD)
        facts.write("b-fp16", HEAD)
        facts.write("a-fp16", {"stage": "smoke", "name": "x", "value": 1, "passed": False})
    with (tmp_path / FACTS).open("a") as file:
        file.write('{"record": "b-fp1')
    assert {name: len(lines) for name, lines in read_facts(tmp_path / FACTS).items()} == {
        "a-fp16": 2,
        "b-fp16": 1,
    }
    records = write_records(tmp_path / FACTS, tmp_path / "records")
    assert records["a-fp16"].verdict == "cut short"
    assert records["a-fp16"].failures == ["smoke: x"]
    lines = (tmp_path / "records" / "a-fp16.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == HEAD
    row = "| a-fp16 | fp16 | a GPU, 580.1 | 0 | cut short | smoke: x |"
    assert row in list(table_of(records.items()))


def test_what_is_no_file_of_facts_is_refused(tmp_path):
    (tmp_path / FACTS).write_text("nonsense\n{}\n")
    with pytest.raises(ValueError, match="line 1"):
        read_facts(tmp_path / FACTS)


def test_a_transfer_holds_what_it_has_room_for(tmp_path):
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "file").write_bytes(np.random.default_rng(0).bytes(2000))
    pack(tmp_path / "content", tmp_path / "b.tar.xz", preset=0)
    transfer = Transfer(folder=tmp_path / "1", room=4000)
    transfer.add_build(tmp_path / "b.tar.xz")
    assert (tmp_path / "1" / "builds.txt").read_text() == "b\n"
    assert not transfer.fits(tmp_path / "b.tar.xz")
    with pytest.raises(SystemExit, match=r"transfer 1 .* it may hold 4,000"):
        transfer.add(tmp_path / "b.tar.xz", "site")


def test_the_checkpoints_weights_do_not_travel():
    weights = sum(path.stat().st_size for path in REPOSITORY.glob(WEIGHTS))
    assert weights > 10e6
    assert 0 < bytes_beside() < 16e6


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a checkpoint in a folder like the repository's."""
    file = tmp_path / "checkpoints" / "demo" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_text("weights")
    return file


def carry(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", CARRY, *command], cwd=folder, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("status", [0, 7])
def test_weights_come_back_after_a_command(tmp_path, weights, status):
    seen = f"[ ! -e {weights} ] && exit {status}"
    assert carry(tmp_path, "sh", "-c", seen).wait(timeout=30) == status
    assert weights.read_text() == "weights"


def test_weights_come_back_after_a_signal(tmp_path, weights):
    process = carry(tmp_path, "sleep", "60")
    while weights.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert weights.read_text() == "weights"


def test_weights_that_a_killed_run_left_aside_come_back(tmp_path, weights):
    aside = tmp_path / ".kit" / "aside" / "demo" / "model.safetensors"
    aside.parent.mkdir(parents=True)
    weights.rename(aside)
    assert carry(tmp_path, "true").wait(timeout=30) == 0
    assert weights.read_text() == "weights"
    assert not aside.exists()
