"""Builds from before this project was one package: their models import what is gone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from iblip.export.artifact.manifest import FORMAT, MANIFEST, Manifest
from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.errors import BuildDirectoryError, ServingError
from iblip.serving.cli import iblip
from iblip.serving.doctor.builds import findings_of_build
from iblip.serving.doctor.machine import Machine
from iblip.serving.lint.checking import lint
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.command import check_repository
from iblip.serving.server.server import TritonServer

OLD_MODEL = Path(__file__).with_name("outdated_model.txt")
"""`model_repository/qformer/1/model.py` as it was, word for word."""


def outdate(model: Path) -> None:
    model.unlink()
    model.write_text(OLD_MODEL.read_text())


@pytest.fixture
def old_build(vicuna_build, tmp_path):
    directory = tmp_path / "old"
    shutil.copytree(vicuna_build, directory, copy_function=os.link, symlinks=True)
    check_repository(directory / REPOSITORY)
    outdate(directory / REPOSITORY / "qformer" / "1" / "model.py")
    return directory


def test_it_is_refused_before_anything_is_started(old_build, monkeypatch):
    def start(*arguments, **options):
        pytest.fail("a process is started")

    monkeypatch.setattr(subprocess, "Popen", start)
    message = r"the model\.py of qformer imports `serving`, which is `iblip\.serving` now"
    with pytest.raises(ServingError, match=message), TritonServer(old_build / REPOSITORY):
        pass
    result = CliRunner().invoke(iblip, ["serve", str(old_build), "--print-command"])
    assert result.exit_code == ServingError.exit_status
    assert re.search(message, result.stderr)


def test_the_command_that_it_names_builds_the_same_again(old_build):
    with pytest.raises(ServingError) as caught:
        check_repository(old_build / REPOSITORY)
    (command,) = re.findall(r"`(iblip build [^`]*)`", str(caught.value))
    program, words = shlex.split(command)[:2], shlex.split(command)[2:]
    assert program == ["iblip", "build"]
    assert words[-2:] == ["--output", str(old_build)]
    result = CliRunner().invoke(iblip, ["build", *words, "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    plan, manifest = json.loads(result.stdout), Manifest.read(old_build)
    assert Path(plan["directory"]) == old_build
    assert {
        part["component"]: part["precision"] for part in plan["components"]
    } == manifest.precision


def test_it_names_what_an_original_was_made_of():
    source = {"model": "lavis:x/y", "revision": None, "parts": {"vit": "/a b"}, "image_size": 480}
    assert rebuild_command(Path("old"), {"source": source}) == (
        "iblip build --model lavis:x/y --image-size 480 --part 'vit=/a b' --output old"
    )


@pytest.mark.parametrize("data", [None, [], {"source": 3, "components": {"vision_encoder": None}}])
def test_a_damaged_manifest_leaves_the_command_short(data):
    assert rebuild_command(Path("old"), data) == "iblip build --output old"


def test_a_repository_of_no_build_is_refused_too(tmp_path):
    version = tmp_path / "models" / "first" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(OLD_MODEL.read_text())
    with pytest.raises(ServingError, match="Make the build again that it belongs to"):
        check_repository(tmp_path / "models")


def test_a_model_that_knows_no_vision_cache_is_not_served_with_one(vicuna_build, tmp_path):
    """It would encode every image, and say nothing."""
    build = tmp_path / "older"
    shutil.copytree(vicuna_build, build, copy_function=os.link, symlinks=True)
    command = ["serve", str(build), "--print-command", "--vision-cache", str(tmp_path / "cache")]
    assert CliRunner().invoke(iblip, command).exit_code == 0
    model = build / REPOSITORY / "instructblip" / "1" / "model.py"
    text = model.read_text()
    model.unlink()
    model.write_text(text.replace("vision_cache", "other"))
    result = CliRunner().invoke(iblip, command)
    assert result.exit_code == ServingError.exit_status
    assert "the model.py of instructblip would not use it. Build it again" in result.stderr
    assert CliRunner().invoke(iblip, command[:3]).exit_code == 0


def test_lint_and_doctor_say_so_too(old_build):
    (found,) = lint(old_build).diagnostics
    assert (found.rule.id, found.path) == ("model-outdated", "model_repository/qformer/1/model.py")
    findings = findings_of_build(old_build, Machine()).here
    (finding,) = [one for one in findings if one.title == "Python models"]
    assert finding.verdict == "problem"
    assert "the model.py of qformer imports `serving`" in finding.found
    assert f"--output {old_build}" in finding.remedy


def test_a_manifest_of_another_format_names_the_command_too(old_build):
    data = json.loads((old_build / MANIFEST).read_text()) | {"format": FORMAT - 1}
    (old_build / MANIFEST).unlink()
    (old_build / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BuildDirectoryError, match=f"--model {data['source']['model']} "):
        Manifest.read(old_build)


@pytest.mark.e2e
def test_the_real_server_does_not_load_it(old_build, monkeypatch):
    """Which is what lint says of it."""
    monkeypatch.setattr("iblip.serving.server.command.check_repository", lambda repository: None)
    with pytest.raises(ServingError, match=r"qformer: .*No module named '(serving|engines)'"):
        TritonServer(old_build / REPOSITORY).__enter__()
