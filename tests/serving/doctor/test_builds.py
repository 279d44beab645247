"""What a build's engines lack, here and in a container."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from iblip.engines.hardware.containers import CONTAINERS, DEPLOYED
from iblip.engines.hardware.nvidia import Driver, Gpu
from iblip.engines.memory import ComponentMemory
from iblip.export.artifact.manifest import EngineRecord, Manifest
from iblip.serving.cli import iblip
from iblip.serving.doctor.builds import findings_of_build, tensors_in_flight
from iblip.serving.doctor.machine import Machine
from iblip.serving.doctor.permissions import CONTAINER_USER
from iblip.serving.doctor.probes import TensorRt, Triton
from iblip.serving.doctor.report import examine, text_from_report

L4 = Driver(
    version="610.43.02",
    cuda="13.3",
    gpus=(Gpu(name="NVIDIA L4", memory=24 << 30, capability="sm89"),),
)
SERVER = Triton(origin="the wheel", version="2.51.0", backends=("python",), wheel=True)
ROOM = {"shared_memory": 1 << 30, "memory": 4 << 30}
HERE = Machine(triton=SERVER, obstacles={"onnxruntime": None}, **ROOM)
WITH_GPU = replace(HERE, driver=L4, libraries={"tensorrt": TensorRt(version="11.4.1.5")})


@pytest.fixture
def made(vicuna_build, tmp_path):
    """`made("tensorrt", version="11.1.0.106")`: a build whose vision encoder is such an engine."""

    def make(kind, platform=None, **details):
        copy = tmp_path / "copy"
        shutil.copytree(vicuna_build, copy, copy_function=os.link)
        manifest = Manifest.read(copy)
        record = manifest.components["vision_encoder"]
        files = record.engine.files
        if platform == "tensorrt_plan":
            files = {"model": "engines/vision_encoder/model.plan"}
            plan = copy / files["model"]
            plan.parent.mkdir(parents=True)
            plan.write_bytes(b"plan")
            config = copy / "model_repository" / "vision_encoder" / "config.pbtxt"
            text = config.read_text().replace('backend: "python"', f'platform: "{platform}"')
            text = text.replace("KIND_CPU", "KIND_GPU")
            os.link(plan, config.parent / "1" / "model.plan")
            config.unlink()  # a link to the build's own
            config.write_text(text)
        engine = EngineRecord(kind=kind, files=files, details=details)
        components = {**manifest.components, "vision_encoder": replace(record, engine=engine)}
        (copy / "manifest.json").unlink()
        replace(manifest, components=components).write(copy)
        return copy

    return make


def about(findings, title="vision_encoder"):
    return next(one for one in findings if one.title == title)


def test_a_build_for_cpus_runs_here_and_in_the_container(vicuna_build):
    found = findings_of_build(vicuna_build, HERE, DEPLOYED)
    assert found.name == "instructblip-demo-vicuna"
    assert {one.verdict for one in found.here} == {"ok"}
    assert about(found.here, "files").found == "all 10 are there"
    assert {one.verdict for one in found.there} == {"ok", "note"}
    assert "deploy/Dockerfile" in about(found.there, "Python models").remedy


def test_a_plan_wants_a_triton_with_its_backend(made):
    build = made("tensorrt", "tensorrt_plan", version="11.1.0.106", targets=["sm89"])
    found = findings_of_build(build, WITH_GPU)
    assert about(found.here).verdict == "problem"
    assert "Triton has python" in about(found.here).found
    assert DEPLOYED.image in about(found.here).remedy
    there = findings_of_build(build, WITH_GPU, DEPLOYED)
    assert about(there.there).verdict == "ok"
    assert about(there.here).verdict == "note"  # not what was asked
    other = findings_of_build(build, WITH_GPU, CONTAINERS["26.07-trtllm-python-py3"])
    assert "26.07-py3" in about(other.there).remedy


def test_a_plan_of_another_version_is_a_problem_unless_compatible(made):
    build = made("tensorrt", "tensorrt_plan", version="11.0.0.114", targets=["sm89"])
    report = examine([build], DEPLOYED.tag, WITH_GPU)
    assert report.verdict == "problem"
    text = text_from_report(report)
    assert "TensorRT 11.1.0.106" in text
    assert text.splitlines()[-1] == "1 problem, no warnings"


def test_a_plan_of_rtx_in_tritons_tensorrt_backend_is_a_problem(made):
    build = made("tensorrt-rtx", "tensorrt_plan", version="1.7.1.116", targets=["sm89"])
    finding = about(findings_of_build(build, WITH_GPU, DEPLOYED).there)
    assert finding.verdict == "problem"
    assert "the backend reads no other" in finding.wanted


def test_a_provider_that_is_missing_is_said(made):
    obstacles = {"onnxruntime": None, "onnxruntime-cuda": "Install onnxruntime-gpu."}
    machine = replace(WITH_GPU, obstacles=obstacles)
    finding = about(findings_of_build(made("onnxruntime-cuda"), machine).here)
    assert (finding.verdict, finding.remedy) == ("problem", "Install onnxruntime-gpu.")


def test_a_container_for_cuda_is_said_to_need_the_bindings(made):
    there = findings_of_build(made("onnxruntime-cuda"), WITH_GPU, DEPLOYED).there
    assert "onnxruntime-gpu and cuda-bindings" in about(there, "Python models").found


def test_a_container_for_openvino_is_said_to_need_its_extra(made):
    there = findings_of_build(made("openvino"), WITH_GPU, DEPLOYED).there
    assert "EXTRA=runtime-openvino" in about(there, "Python models").remedy


def test_a_gpu_that_does_not_hold_what_a_build_recorded_is_said(made):
    row = ComponentMemory(component="vision_encoder", weights=30 << 30, work=0)
    build = made("onnxruntime-cuda", memory=row.to_json())
    finding = about(findings_of_build(build, WITH_GPU).here, "GPU memory")
    assert finding.verdict == "warning"
    assert finding.found == "24.00 GiB in all"
    assert "vision_encoder 30.50 GiB" in finding.wanted
    large = replace(L4, gpus=(replace(L4.gpus[0], memory=48 << 30),))
    finding = about(findings_of_build(build, replace(WITH_GPU, driver=large)).here, "GPU memory")
    assert (finding.verdict, finding.found[:13]) == ("ok", "serving takes")
    assert about(findings_of_build(build, HERE).here, "GPU memory").verdict == "note"


def test_files_that_are_missing_or_cut_short_are_named(made):
    plan = {"version": "11.1.0.106", "targets": ["sm89"], "bytes": 5}
    build = made("tensorrt", "tensorrt_plan", **plan)
    (build / "graphs" / "qformer" / "model.onnx").unlink()
    finding = about(findings_of_build(build, WITH_GPU).here, "files")
    assert finding.verdict == "problem"
    assert "graphs/qformer/model.onnx (missing)" in finding.found
    assert "engines/vision_encoder/model.plan (4 bytes instead of 5)" in finding.found


def test_weights_and_tokenizers_are_missed_too(made):
    build = made("onnxruntime")
    weights = Manifest.read(build).components["language_model"].graphs["decoder"].weights[-1]
    (build / weights).unlink()
    (build / "text" / "tokenizer.json").unlink()
    finding = about(findings_of_build(build, HERE).here, "files")
    assert finding.verdict == "problem"
    assert f"{weights} (missing)" in finding.found
    assert "text/tokenizer.json (missing)" in finding.found


def test_a_build_that_cannot_be_read_is_a_problem_and_no_traceback(made, tmp_path):
    config = made("onnxruntime") / "model_repository" / "qformer" / "config.pbtxt"
    text = config.read_bytes()
    config.unlink()
    config.write_bytes(text + b"\xff")
    (finding,) = findings_of_build(tmp_path / "copy", HERE).here
    assert finding.verdict == "problem"
    assert f"{config} is not UTF-8" in finding.found
    (tmp_path / "other" / "manifest.json").mkdir(parents=True)
    (finding,) = findings_of_build(tmp_path / "other", HERE).here
    assert finding.verdict == "problem"
    assert "directory" in finding.found


def test_a_full_server_wants_shared_memory(vicuna_build):
    manifest = Manifest.read(vicuna_build)
    wants = tensors_in_flight(manifest)
    row = 8 * 96 * 4  # queries, width, float32
    assert wants > row * (manifest.limits.slots + manifest.limits.queue)
    small = replace(HERE, shared_memory=wants - 1)
    finding = about(findings_of_build(vicuna_build, small).here, "shared memory")
    assert finding.verdict == "warning"
    enough = findings_of_build(vicuna_build, replace(HERE, shared_memory=wants)).here
    assert "shared memory" not in {one.title for one in enough}


@pytest.mark.parametrize(
    ("free", "remedy"), [(300 << 20, "It may not load"), (410 << 20, "Use fewer slots")]
)
def test_a_build_that_memory_does_not_hold_is_said(vicuna_build, free, remedy):
    finding = about(findings_of_build(vicuna_build, replace(HERE, memory=free)).here, "memory")
    assert finding.verdict == "warning"
    assert remedy in finding.remedy


def test_the_command_on_builds(vicuna_build, tmp_path):
    done = CliRunner().invoke(iblip, ["doctor", "--json", str(vicuna_build)])
    assert done.exit_code == 0, done.output
    (build,) = json.loads(done.output)["builds"]
    assert build["name"] == "instructblip-demo-vicuna"
    assert {one["verdict"] for one in build["here"]} == {"ok"}

    none = CliRunner().invoke(iblip, ["doctor", str(vicuna_build), str(tmp_path / "none")])
    assert none.exit_code == 2
    assert "there is no directory" in none.output
    (tmp_path / "none").mkdir()
    none = CliRunner().invoke(iblip, ["doctor", str(vicuna_build), str(tmp_path / "none")])
    assert none.exit_code == 1
    assert none.output.splitlines()[-1] == "1 problem, no warnings"


def test_what_is_the_same_of_several_is_told_once(vicuna_build):
    machine = replace(HERE, obstacles={"onnxruntime": "It is not installed."})
    text = text_from_report(examine([vicuna_build], machine=machine))
    assert text.count("It is not installed.") == 1
    assert "vision_encoder, qformer, language_model of " in " ".join(text.split())


def cut(path, size):
    data = path.read_bytes()[:size]
    path.unlink()  # a link to the build's own
    path.write_bytes(data)


BROKEN = {
    "weights": (lambda build: cut(build / "graphs/vision_encoder/model.safetensors", 1000), "1000"),
    "no weights": (lambda build: (build / "graphs/qformer/model.safetensors").unlink(), "missing"),
    "graph": (lambda build: cut(build / "graphs/qformer/model.onnx", 5000), "is not an ONNX file"),
    "tokenizer": (lambda build: cut(build / "text/tokenizer.json", 2), "is no tokenizer"),
    "no tokenizer": (lambda build: (build / "text/tokenizer.json").unlink(), "missing"),
    "config": (
        lambda build: cut(build / "model_repository/instructblip/config.pbtxt", 313),
        "Expected",
    ),
    "model": (lambda build: (build / "model_repository/qformer/1/model.py").unlink(), "model.py"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_build_that_cannot_start_is_found_before_it_is_started(name, vicuna_build, tmp_path):
    damage, message = BROKEN[name]
    build = tmp_path / "build"
    shutil.copytree(vicuna_build, build, copy_function=os.link)
    damage(build)
    found = findings_of_build(build, HERE).here
    assert any(message in one.found for one in found if one.verdict == "problem")
    for command in (["doctor", str(build)], ["lint", str(build)]):
        result = CliRunner().invoke(iblip, command)
        assert result.exit_code == 1, result.output
        assert message in " ".join(result.output.split())
    if message not in ("Expected", "model.py"):  # what Triton itself says of a model
        result = CliRunner().invoke(iblip, ["serve", str(build)])
        assert result.exit_code == 1
        assert "cannot be served: " in result.stderr
        assert message in result.stderr
    assert CliRunner().invoke(iblip, ["inspect", str(build)]).exit_code == 0


def test_a_build_that_the_containers_user_cannot_read_is_named(vicuna_build, tmp_path):
    build = tmp_path / "build"
    shutil.copytree(vicuna_build, build)

    def verdicts(container=None):
        findings = findings_of_build(build, HERE, container)
        return [f for f in (*findings.here, *findings.there) if f.title == "permissions"]

    assert not verdicts(DEPLOYED)
    (build / "graphs").chmod(0o750)
    (build / "manifest.json").chmod(0o600)
    (note,) = verdicts()
    assert note.verdict == "note"
    (problem,) = verdicts(DEPLOYED)
    assert problem.verdict == "problem"
    assert problem.found == "'graphs' and 1 more: other users may not read it"
    assert str(CONTAINER_USER) in problem.wanted
    assert f"chmod -R o+rX {build}" in problem.remedy


def test_no_name_of_a_file_reaches_the_terminal_raw(vicuna_build, tmp_path):
    repository = tmp_path / "\x1b[2Jmodels"
    shutil.copytree(vicuna_build / "model_repository", repository)
    (repository / "qformer").rename(repository / "\x1b]0;token\x07")
    for command in (
        ["lint", str(repository)],
        ["doctor", str(repository)],
        ["serve", str(repository)],
    ):
        output = CliRunner().invoke(iblip, command).output
        assert not set(output) & {"\x1b", "\x07"}
        assert r"\u001b" in output or r"\x1b" in output
