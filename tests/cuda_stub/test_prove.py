"""`iblip prove` over the stubs: every stage runs to its end, and nothing is proven by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cuda_stub

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record(cuda_build, tmp_path_factory):
    """Of a build whose components all run on CUDA; it was not verified."""
    build, folder = cuda_build("minigpt4-demo", "fp16"), tmp_path_factory.mktemp("proof")
    file, path = folder / "record.jsonl", os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-m", "iblip", "prove", str(build), "--record", str(file), "--json"],
        env=os.environ | {"IBLIP_CACHE": str(folder), "PYTHONPATH": f"{path}:{REPOSITORY}"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("proofs/*"))
    return json.loads(done.stdout)


def facts(record, stage):
    return {fact["name"]: fact["value"] for fact in record["stages"][stage]["facts"]}


def test_it_says_stubs_and_proves_nothing(record):
    assert record["stubs"]
    assert record["verdict"] == "stubs"
    assert not record["proven"]
    assert "nothing was computed" in record["reason"]
    assert all(stage["ended"] in ("done", "skipped") for stage in record["stages"].values())


def test_a_gpus_memory_is_tried(record):
    tried = facts(record, "smoke")
    for name in ("upload and download", "clear", "rows apart", "pinned memory", "a captured copy"):
        assert tried[name] == "as in numpy"
    refused = tried["an allocation that no GPU can give"]
    assert refused == "refused with cudaErrorMemoryAllocation"
    assert tried["bytes held after 1,000 allocations were freed"] == 0


def test_products_and_attention_lie_on_cuda(record):
    placed = facts(record, "placement")
    heavy = {name: n for name, n in placed.items() if name.endswith("on the CPU")}
    assert len(heavy) == 4
    assert not any(heavy.values())


def test_the_kernels_of_attention_are_told(record):
    assert any(name.startswith("GroupQueryAttention by ") for name in facts(record, "kernels"))


def test_memory_is_given_back(record):
    assert facts(record, "memory")["growth from 20 to 200 requests, bytes"] <= 1 << 20
