"""`iblip build --dry-run`, against what the same build then is."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import BuildDirectoryError
from iblip.export.graph.writing import ALIGNMENT
from iblip.export.messages import size_text
from iblip.serving.builder.build import build
from iblip.serving.builder.dry_run import plan
from iblip.serving.builder.options import BuildOptions, LimitOptions
from iblip.serving.cli import export
from iblip.serving.server import memory
from iblip.serving.server.memory import PROCESSES, ServingMemory, loaded_by_place, memory_of_build
from tests.cases import exhaustive

NARROW = "vision_encoder=int8,qformer=fp8,language_model=int4"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("instructblip-demo-vicuna", NARROW),
        ("blip2-demo-flant5", "fp32"),
        exhaustive("blip2-demo-opt", "fp32"),
        exhaustive("instructblip-demo-vicuna", "fp16"),  # its file is fp32
        ("blip2-demo-opt", "fp16"),  # its file is fp16
        exhaustive("blip2-demo-flant5", "fp16"),
        ("minigpt4-demo-llama2", "fp16"),
    ],
)
def test_a_build_is_what_was_planned(name, precision, checkpoints, tmp_path):
    options = BuildOptions(
        source=ModelSource(model=str(checkpoints / name)),
        precision=precision,
        output=tmp_path / "built",
        verification=None,
        limits=LimitOptions(max_length=128),
    )
    planned = plan(options)
    assert not list(tmp_path.iterdir())
    directory = build(options)
    manifest = Manifest.read(directory)
    for component in planned.components:
        graphs = manifest.components[component.component].graphs
        assert set(component.graphs) == set(graphs)
        files = {directory / path for graph in graphs.values() for path in graph.weights}
        made = {path for path in files if path.suffix == ".weights"}
        written = sum(path.stat().st_size for path in made)
        places = loaded_by_place(directory / graph.path for graph in graphs.values())
        loaded = sum(places.values())
        assert bool(component.linked) == bool(files - made)
        if component.precision in ("int8", "fp8"):  # which products stay floats is measured
            assert 0.8 * component.loaded < loaded < 1.01 * component.loaded
            continue
        # The planned bytes have no gaps, which every tensor of the files may have.
        assert component.written <= written <= component.written + ALIGNMENT * len(places)
        assert loaded == component.loaded
    served = memory_of_build(directory, manifest)
    assert planned.memory is not None
    assert served is not None
    assert served.position == planned.memory.position
    assert served.weights == pytest.approx(planned.memory.weights, rel=0.1)


def test_the_plan_is_printed_and_nothing_is_written(tmp_path):
    directory = tmp_path / "built"
    arguments = ["build", "--dry-run", "--output", str(directory), "--slots", "3"]
    told = CliRunner().invoke(export, arguments)
    assert told.exit_code == 0, told.stderr
    assert f"would be built in {directory}; nothing is written now" in told.stdout
    assert "if all 3 slots reach 1,024 positions" in told.stdout
    data = json.loads(CliRunner().invoke(export, [*arguments, "--json"]).stdout)
    assert data["disk"]["fits"] is True
    assert {row["component"] for row in data["components"]} == {
        "vision_encoder",
        "qformer",
        "language_model",
    }
    # Keys and values of 4 layers, 4 heads of 32, in float32.
    assert data["memory"]["bytes_a_position"] == 2 * 4 * 4 * 32 * 4
    assert not list(tmp_path.iterdir())


ENGINES = ("onnxruntime", "openvino")


def test_on_openvino_a_server_takes_as_much_but_for_fp16():
    pytest.importorskip("openvino")

    def planned(*words, engine="openvino"):
        engines = ["--engine", engine, "--llm-engine", engine]
        return CliRunner().invoke(export, ["build", "--dry-run", "--json", *engines, *words])

    for words in ([], ["--precision", "language_model=int4"]):
        memory = [json.loads(planned(*words, engine=e).stdout)["memory"] for e in ENGINES]
        del memory[0]["available"], memory[1]["available"]
        assert memory[0] == memory[1] is not None
    half = planned("--precision", "vision_encoder=fp16")
    assert json.loads(half.stdout)["memory"] is None


def test_files_on_another_disk_are_copies(tmp_path, checkpoints, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(checkpoints / "instructblip-demo-vicuna", other, symlinks=True)
    options = BuildOptions(source=ModelSource(model=str(other)), output=tmp_path / "built")
    plain = plan(options)
    assert plain.linked > 0
    assert plain.copied == 0
    monkeypatch.setattr("iblip.serving.builder.dry_run._find_disk", lambda path: path.suffix)
    copied = plan(options)
    assert copied.copied == (other / "model.safetensors").stat().st_size
    assert "of them copies" in str(copied)


def test_a_disk_with_too_little_room_is_told_before_anything_is_traced(
    tmp_path, checkpoints, monkeypatch
):
    source = ModelSource(model=str(checkpoints / "instructblip-demo-vicuna"))
    options = BuildOptions(source=source, output=tmp_path / "built", precision="fp16")
    written = plan(options).written
    usage = shutil.disk_usage(tmp_path)._replace(free=written)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("iblip.serving.builder.build._export_graphs", None)
    with pytest.raises(BuildDirectoryError, match=rf"takes {size_text(written)}, and .* are free"):
        build(options)
    assert not list(tmp_path.iterdir())


def test_a_machine_with_too_little_memory_is_told(monkeypatch):
    wanted = ServingMemory(weights=6 << 30, position=1 << 20, slots=8, positions=2048)
    assert wanted.least == (6 << 30) + PROCESSES
    assert wanted.most == wanted.least + (16 << 30)
    for free, told in ((30, None), (20, "20.00 GiB are free here: fewer slots"), (5, "may not")):
        monkeypatch.setattr(memory, "available", lambda free=free: free << 30)
        advice = wanted.advice
        assert advice is None if told is None else told in str(advice)
