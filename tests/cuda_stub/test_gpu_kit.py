"""A rehearsal of the kit for a GPU machine: made, unpacked and run, over the stubs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.facts import FACTS
from benchmarks.gpu.make_kit import (
    LIMIT,
    REPOSITORY,
    Transfer,
    pack_build,
    pack_onnxruntime,
    pack_true_size,
)
from benchmarks.gpu.prove_builds import COMPARING
from benchmarks.gpu.prune import device_codes, prune_provider
from benchmarks.gpu.records import write_records
from iblip.serving.proving.stages import STAGES
from tests.cuda_stub.building import find_provider

pytestmark = pytest.mark.cuda_stub

DEMOS = ("minigpt4-demo", "minigpt4-demo-llama2")

FAST = 1
"""xz's preset: the kit itself is packed more tightly, and longer."""


@pytest.fixture(scope="module")
def onnxruntime(tmp_path_factory) -> Path:
    """The archive of the installed ONNX Runtime, its provider cut to one architecture."""
    archive = tmp_path_factory.mktemp("parts") / "onnxruntime.tar.xz"
    pack_onnxruntime(find_provider().parents[2], archive, preset=FAST)
    return archive


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> dict[str, str]:
    """The environment of a machine that has neither onnx_ir nor what this one has unpacked."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "bare").mkdir()
    (folder / "bare" / "onnx_ir.py").write_text("raise ImportError('not on the GPU machine')\n")
    (folder / "out").mkdir()
    path = os.environ.get("PYTHONPATH", "")
    return os.environ | {
        "WORK": str(folder / "work"),
        "OUT": str(folder / "out"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'bare'}:{path}",
    }


def run_script(number: int, folder: Path, machine: dict[str, str]) -> str:
    done = subprocess.run(
        ["sh", f"benchmarks/gpu/run-{number}.sh", str(folder)],
        cwd=REPOSITORY,
        env=machine,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def records(onnxruntime, machine, cuda_build, tmp_path_factory):
    """What transfer 1 brings back: two builds, their first whole."""
    parts = tmp_path_factory.mktemp("transfer")
    transfer = Transfer(folder=parts / "1", room=LIMIT)
    transfer.add(onnxruntime, "site")
    for demo in DEMOS:
        archive = parts / f"{demo}-fp16.tar.xz"
        pack_build(cuda_build(demo, "fp16"), archive, preset=FAST)
        transfer.add_build(archive)
    said = run_script(1, transfer.folder, machine | {"SECONDS_LEFT": "600"})
    assert "STUBS" in said
    return write_records(Path(machine["OUT"]) / FACTS, parts / "records")


def test_the_provider_is_cut_to_one_architecture(tmp_path):
    pruned = tmp_path / "pruned.so"
    kept, cut = prune_provider(find_provider(), pruned)
    assert 10e6 < kept < 40e6
    assert cut > 5 * kept
    whole, rest = find_provider().read_bytes(), pruned.read_bytes()
    assert len(rest) == len(whole)
    for code in device_codes(whole):
        piece = rest[code.offset : code.offset + code.size]
        if code.architecture != 90:
            assert not any(piece)
        else:
            assert not any(piece) or piece == whole[code.offset : code.offset + code.size]


def test_an_architecture_that_it_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no code for sm_37; it has .*sm_90"):
        prune_provider(find_provider(), tmp_path / "pruned.so", 37)


def test_the_first_build_is_proven_whole(records):
    record = records[f"{DEMOS[0]}-fp16"]
    assert list(record.stages) == list(STAGES)
    assert all(stage["ended"] in ("done", "skipped") for stage in record.stages.values())
    assert record.verdict == "stubs"
    assert record.head["versions"]["onnxruntime-gpu"]


def test_the_others_are_compared_then_proven_whole(records):
    assert set(records[f"{DEMOS[1]}-fp16-compared"].stages) == set(COMPARING)
    assert list(records[f"{DEMOS[1]}-fp16"].stages) == list(STAGES)


def test_products_lie_on_the_gpu_with_the_pruned_provider(records, machine):
    for record in records.values():
        facts = record.stages["placement"]["facts"]
        heavy = [fact for fact in facts if "products and attention on the CPU" in fact["name"]]
        assert heavy
        assert not any(fact["value"] for fact in heavy)
    provider = "site/onnxruntime/capi/libonnxruntime_providers_cuda.so"
    pruned = (Path(machine["WORK"]) / provider).read_bytes()
    whole = find_provider().read_bytes()
    assert pruned != whole
    assert len(pruned) == len(whole)


def test_what_does_not_travel_is_named(machine, tmp_path):
    (tmp_path / "2").mkdir()
    done = subprocess.run(
        ["sh", "benchmarks/gpu/run-2.sh", str(tmp_path / "2")],
        cwd=REPOSITORY,
        env=machine | {"WORK": str(tmp_path / "work")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "just run transfer 1" in done.stderr


def test_weights_of_true_size_are_made_and_timed(onnxruntime, machine, cuda_build, tmp_path):
    archive = tmp_path / "demo.tar.xz"
    pack_true_size(cuda_build(DEMOS[0], "fp16"), archive, preset=FAST)
    transfer = Transfer(folder=tmp_path / "3", room=LIMIT)
    transfer.add(onnxruntime, "site")
    transfer.add(archive, "true_size")
    out = tmp_path / "out"
    out.mkdir()
    environment = machine | {"OUT": str(out), "WORK": str(tmp_path / "work")}
    assert "GB of weights were made" in run_script(3, transfer.folder, environment)
    records = write_records(out / FACTS, tmp_path / "records")
    for stage in ("speed", "placement"):
        assert records[f"demo-{stage}"].stages[stage]["ended"] == "done"
    timed = {fact["name"] for fact in records["demo-speed"].stages["speed"]["facts"]}
    assert "language_model, 1 row: a token, ms" in timed
