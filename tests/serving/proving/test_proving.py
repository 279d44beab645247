"""`iblip prove`: what a record has, and that what is wrong with a build fails."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import FACTS, TENSORS
from iblip.serving.proving.answers import divergence
from iblip.serving.proving.record import RECORD, Record, record_of_build
from iblip.serving.proving.running import ProofOptions, prove
from iblip.serving.proving.stages import STAGES

CHILDREN = "/proc/{0}/task/{0}/children"


def failed(record):
    return {
        fact["name"]
        for stage in record["stages"].values()
        for fact in stage["facts"]
        if fact["passed"] is False
    }


def test_every_stage_of_a_good_build_passes(proven):
    stages = proven.record["stages"]
    assert list(stages) == list(STAGES)
    assert {name: stage["ended"] for name, stage in stages.items() if stage["ended"] != "done"} == {
        "kernels": "skipped"
    }
    assert proven.record["verdict"] == "passed"
    assert not failed(proven.record)
    for name in ("graphs", "text", "ranking", "images", "invariance", "memory"):
        assert any(fact["passed"] for fact in stages[name]["facts"]), name
    graphs = {fact["name"].split(":")[0] for fact in stages["graphs"]["facts"]}
    manifest = Manifest.read(proven.build)
    assert graphs == {
        f"{component}/{graph}"
        for component, record in manifest.components.items()
        for graph in record.graphs
    }


def test_the_record_lies_in_the_build_and_leaves_its_digests_as_they_are(proven):
    record = Record.read(proven.build / RECORD)
    assert record.to_json() == proven.record
    assert record_of_build(proven.build) == record
    inputs = json.loads((proven.build / "inputs.json").read_text())
    assert not [name for name in inputs["files"] if name.startswith("proof/")]
    assert {FACTS, TENSORS} < inputs["files"].keys()


def test_the_page_has_every_fact(proven):
    page = (proven.build / RECORD).with_suffix(".html").read_text(encoding="utf-8")
    for stage in proven.record["stages"].values():
        for fact in stage["facts"]:
            assert fact["name"].replace("'", "&#x27;") in page
    assert "<script" not in page


def test_a_proof_is_kept_for_the_user(proven):
    (file,) = (proven.cache / "proofs").glob("*.json")
    proof = json.loads(file.read_text())
    assert proof["key"]["engines"] == dict.fromkeys(proof["key"]["engines"], "onnxruntime")
    assert proof["key"]["architecture"] == "cpu"
    assert proven.record["proven"]


def test_inspect_and_doctor_show_the_record(proven, run_iblip):
    shown = run_iblip("export", "inspect", proven.build)
    assert "proof: passed on this CPU" in shown.stdout
    as_json = run_iblip("export", "inspect", proven.build, "--json")
    assert json.loads(as_json.stdout)["proof"]["verdict"] == "passed"
    doctor = json.loads(run_iblip("doctor", proven.build, "--json").stdout)
    (finding,) = [f for f in doctor["builds"][0]["here"] if f["title"] == "proof"]
    assert finding["verdict"] == "ok"
    assert finding["found"].startswith("passed on this CPU")


def test_a_record_of_another_build_is_not_shown(proven, copied, run_iblip):
    build = copied(proven.build)
    manifest = build / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    manifest.write_text(text + "\n")
    assert "proof: none of this build" in run_iblip("export", "inspect", build).stdout


def test_a_damaged_weight_is_found_in_its_graph_and_in_no_other(vicuna_build, damaged, call):
    weight = "qformer.encoder.layer.2.intermediate_query.dense.weight"
    build = damaged(vicuna_build, weight)
    done = call(build, "--stage", "graphs", "--json")
    assert done.exit_code == 1
    assert failed(json.loads(done.stdout)) == {"qformer/model: largest difference"}
    assert (
        done.stderr.strip().splitlines()[-1].endswith("graphs: qformer/model: largest difference")
    )


def test_answers_that_differ_fail_and_are_shown(proven, copied, call):
    build = copied(proven.build)
    facts = json.loads((build / FACTS).read_text())
    texts = [answer for answer in facts["answers"] if answer["way"] == "text"]
    texts[0] |= {"token_ids": [5, 6], "text": "something else"}
    rewrite(build / FACTS, json.dumps(facts).encode())
    sign(build)
    done = call(build, "--stage", "text", "--limit", 4, "--json")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert failed(record) == {"greedy: the same tokens, share of 4 answers"}
    (shown,) = [f for f in record["stages"]["text"]["facts"] if f["name"].endswith("differs")]
    assert shown["value"].startswith("expected 'something else', found ")


def test_a_build_with_fewer_slots_than_beams_is_compared_without_them(proven, copied, call):
    build = copied(proven.build)
    facts = json.loads((build / FACTS).read_text())
    facts["answers"] = [answer for answer in facts["answers"] if answer["way"] != "beams"]
    rewrite(build / FACTS, json.dumps(facts).encode())
    sign(build)
    done = call(build, "--stage", "text", "--limit", 1, "--json")
    stage = json.loads(done.stdout)["stages"]["text"]
    assert (done.exit_code, stage["ended"]) == (0, "done")
    assert stage["facts"][-1]["value"].startswith("not compared: with ")


def test_references_that_were_changed_are_refused_with_their_names(proven, copied, call):
    build = copied(proven.build)
    content = bytearray((build / TENSORS).read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(build / TENSORS, bytes(content))
    done = call(build, "--stage", "graphs")
    assert done.exit_code == 1
    assert f"{TENSORS} has digest" in done.output


def test_a_run_that_is_killed_leaves_what_it_knew(proven, copied):
    build = copied(proven.build)
    (build / RECORD).unlink()
    stages = [word for name in ("smoke", "memory") for word in ("--stage", name)]
    with subprocess.Popen([sys.executable, "-m", "iblip", "prove", str(build), *stages]) as run:
        wait_for(lambda: "bytes held in this process, open" in read(build))
        (worker,) = map(int, Path(CHILDREN.format(run.pid)).read_text().split())
        run.kill()
        os.kill(worker, signal.SIGKILL)
    record = Record.read(build / RECORD)
    assert record.verdict == "cut short"
    assert record.stages["smoke"]["ended"] == "done"
    assert record.stages["memory"]["ended"] is None
    assert len(record.stages["memory"]["facts"]) >= 1
    assert not record.proven


def test_a_stage_whose_process_dies_fails_and_the_next_one_runs(proven, copied):
    build = copied(proven.build)
    (build / RECORD).unlink()
    stages = [word for name in ("invariance", "memory", "smoke") for word in ("--stage", name)]
    command = [sys.executable, "-m", "iblip", "prove", str(build), *stages, "--limit", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: "bytes held in this process, open" in read(build))
        (worker,) = map(int, Path(CHILDREN.format(run.pid)).read_text().split())
        os.kill(worker, signal.SIGKILL)
        assert run.stderr
        said = run.stderr.read()
    assert run.returncode == 1
    assert "memory: its process was ended by signal 9" in said
    record = Record.read(build / RECORD)
    assert record.verdict == "failed"
    assert record.stages["invariance"]["ended"] == "done"


def test_a_stage_that_takes_too_long_is_stopped_and_the_next_one_runs(proven, tmp_path):
    path = tmp_path / "record.jsonl"
    options = ProofOptions(stages=("text", "memory"), record=path, stage_s=0.2)
    record = prove(proven.build, options, lambda line: None)
    reasons = [stage["reason"] for stage in record.stages.values()]
    assert reasons == ["it did not end within 0.2 s and was stopped"] * 2
    assert record.verdict == "failed"


def test_a_build_without_verification_proves_nothing_and_says_so(
    checkpoints, tmp_path, make_once, call
):
    build = make_once("builds/unverified-vicuna", lambda path: unverified(checkpoints, path))
    record = tmp_path / "record.jsonl"
    done = call(build, "--no-torch", "--record", record, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    ends = {name: stage["ended"] for name, stage in result["stages"].items()}
    measured = {"smoke", "placement", "memory", "speed"}
    assert {name for name, end in ends.items() if end == "done"} == measured
    assert "--no-verify" in result["stages"]["graphs"]["reason"]
    assert not result["proven"]
    assert "graphs, text" in result["reason"]
    assert not (build / RECORD).exists()
    assert Record.read(record).to_json() == result


def unverified(checkpoints, directory):
    from iblip.export.checkpoint.source import ModelSource
    from iblip.serving.builder.build import build
    from iblip.serving.builder.options import BuildOptions

    source = ModelSource(model=str(checkpoints / "instructblip-demo-vicuna"))
    build(BuildOptions(source=source, output=directory, verification=None))


def test_a_wrong_call_ends_with_2(proven, call, tmp_path):
    done = call(proven.build, "--stage", "graph")
    assert done.exit_code == 2
    assert "Did you mean 'graphs'?" in done.stderr
    assert call(proven.build, "--limit", 0).exit_code == 2
    (tmp_path / "file").touch()
    done = call(proven.build, "--record", tmp_path / "file" / "record.jsonl")
    assert done.exit_code == 2
    assert "Name another file with --record" in done.stderr
    assert call(tmp_path).exit_code == 1


def test_a_proof_loads_neither_torch_nor_what_reads_checkpoints_or_images(proven):
    code = """
import sys
from pathlib import Path
from iblip.export.artifact.manifest import Manifest
from iblip.serving.proving import running
from iblip.serving.proving.running import ProofOptions, prove
from iblip.serving.proving.stages import STAGES
from iblip.serving.proving.subject import Subject, NothingToMeasureError
build = Path(sys.argv[1])
subject = Subject(directory=build, manifest=Manifest.read(build), limit=1, torch=False)
for name in set(STAGES) - {"memory"}:
    try:
        list(STAGES[name].load()(subject))
    except NothingToMeasureError:
        pass
heavy = "torch", "transformers", "onnx", "onnx_ir", "PIL", "tritonclient", "grpc"
print([name for name in heavy if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(proven.build)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_divergence_of_the_likeliest_tokens_is_that_of_both_distributions():
    random = np.random.default_rng(0)
    p, q = (np.log(random.dirichlet(np.ones(8))) for _ in range(2))
    whole = float((np.exp(p) * (p - q)).sum())
    first, second = (tuple(enumerate(map(float, values))) for values in (p, q))
    assert divergence(first, second) == pytest.approx(whole, rel=1e-6)
    assert divergence(first, first) == 0
    likely = ((0, math.log(0.6)), (1, math.log(0.3)))
    assert divergence(likely, ((2, math.log(0.5)), (3, math.log(0.1)))) > 1
    # All others are taken together, which hides how they differ among themselves.
    assert divergence(first[:4], second[:4]) < whole


def rewrite(path, content):
    """Replaces a file that other builds are linked to."""
    path.unlink()
    path.write_bytes(content)


def sign(build):
    """Has the manifest name the references as they are now."""
    from iblip.export.system.files import sha256

    path = build / "manifest.json"
    data = json.loads(path.read_text())
    data["references"] = {name: sha256(build / name) for name in data["references"]}
    rewrite(path, json.dumps(data).encode())


def read(build):
    try:
        return (build / RECORD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
