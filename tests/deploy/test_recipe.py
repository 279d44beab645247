"""The container recipe, read by Docker's own parsers: no Docker runs here.

hadolint reads the Dockerfile, BuildKit's parser its instructions, Docker Compose its files.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from iblip.engines.hardware.containers import CONTAINERS, DEPLOYED
from iblip.serving.cli import iblip
from iblip.serving.doctor.permissions import CONTAINER_USER
from iblip.serving.server.command import triton_arguments
from iblip.serving.server.installation import find_triton
from iblip.serving.server.options import ServerOptions
from tests.pins import PINS

dockerfile = pytest.importorskip("dockerfile", reason="its wheels are for Linux on x86-64")

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
RECIPE = DEPLOY / "Dockerfile"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def commands():
    return dockerfile.parse_file(str(RECIPE))


def values(commands, name):
    return [command.value for command in commands if command.cmd.upper() == name]


def extra_of(name):
    """The requirements of an extra, as `pyproject.toml` has them; `""` is the project's own."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][name] if name else project["dependencies"]
    return [Requirement(line) for line in lines]


def packages_of(name):
    """The packages that an extra names, with those of the extras that it includes."""
    packages = set()
    for requirement in extra_of(name):
        if requirement.name == "iblip":
            packages = packages.union(*map(packages_of, requirement.extras))
        else:
            packages.add(canonicalize_name(requirement.name))
    return packages


def compose(*files, **variables):
    flags = [word for file in files for word in ("-f", str(DEPLOY / file))]
    done = subprocess.run(
        [BIN / "docker-compose", *flags, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]["triton"]


def test_hadolint_finds_nothing():
    done = subprocess.run([BIN / "hadolint", RECIPE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_made_from_the_container_that_the_doctor_knows(commands):
    images = [value[0] for value in values(commands, "FROM")]
    stages = {value[2] for value in values(commands, "FROM") if len(value) > 2}
    assert [image for image in images if image not in stages] == [DEPLOYED.image]


def test_what_is_copied_exists_and_is_not_ignored(commands):
    sources = [
        source
        for command in commands
        if command.cmd.upper() == "COPY" and not any("--from" in flag for flag in command.flags)
        for source in command.value[:-1]
    ]
    assert {"serving", "engines", "export", "model_repository", "constraints.txt"} <= set(sources)
    links = {path.name for path in (REPOSITORY / "iblip").iterdir() if path.is_symlink()}
    assert {"iblip", *links} <= set(sources)  # a link is copied as one, and leads to its sibling
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in rules, source
    for name in ("build", "checkpoints", ".venv", ".git"):
        assert not any(fnmatch.fnmatch(name, rule[1:]) for rule in rules if rule[0] == "!")


def test_the_package_that_is_built_there_has_all_it_reads(commands):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    copied = {source for value in values(commands, "COPY") for source in value[:-1]}
    assert {project["readme"], *project["license-files"], "pyproject.toml"} <= copied


def test_versions_are_those_of_the_constraints(commands):
    (install,) = [value[0] for value in values(commands, "RUN") if "pip install" in value[0]]
    assert "--constraint constraints.txt" in install
    assert '".[${EXTRA}]"' in install
    pinned = {canonicalize_name(name) for name in PINS}
    for extra in ("", "runtime-gpu", "runtime-openvino"):
        assert packages_of(extra) <= pinned
    python = DEPLOYED.python.rpartition(".")[0]
    assert python in ("3.11", "3.12")  # what the Makefile allows


def test_a_language_model_on_cuda_finds_all_that_it_imports(commands):
    (extra,) = values(commands, "ARG")
    installed = packages_of(extra[0].partition("=")[2])
    assert {"tokenizers", "onnxruntime-gpu", "cuda-bindings"} <= installed
    assert "onnxruntime" not in installed  # it has the same files as onnxruntime-gpu
    runtime = {"llguidance", "ml-dtypes", "onnx-ir", "onnxruntime", "tokenizers", "tritonclient"}
    assert packages_of("runtime-cpu") == runtime
    assert packages_of("runtime-openvino") == {*runtime, "openvino"}


def test_the_extras_of_a_gpu_are_those_that_work_together():
    gpu = {one.name: one for one in extra_of("gpu")}
    assert gpu["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    assert "cuda-bindings" in gpu
    assert "tensorrt" not in gpu  # ONNX Runtime's provider links to 10, and the container has 11
    tensorrt = {one.name: one for one in extra_of("tensorrt")}
    assert str(tensorrt["tensorrt"].specifier) == f"=={DEPLOYED.tensorrt}"
    assert "cuda-bindings" in tensorrt


def test_it_runs_as_nobody_in_particular_and_keeps_no_secret(commands):
    (user,) = values(commands, "USER")
    assert user[0] == f"{CONTAINER_USER}:{CONTAINER_USER}"
    assert CONTAINER_USER > 0
    text = RECIPE.read_text().lower()
    assert not re.search(r"password|secret|token[^i]|_key\b", text)
    assert [value[0] for value in values(commands, "EXPOSE")] == ["8000"]
    assert "ENTRYPOINT" not in {command.cmd.upper() for command in commands}


def test_its_command_is_that_of_iblip_serve(commands, vicuna_build, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    (command,) = values(commands, "CMD")
    program, *words = command
    assert program == "/opt/iblip/bin/iblip"
    assert words[:2] == ["serve", "/build"]
    assert words[-2:] == ["--log", "-"]  # the server's log is the container's
    words.append("--allow-known-vulnerabilities")  # of the wheel; the container has another Triton
    shown = [str(vicuna_build) if word == "/build" else word for word in words]
    done = CliRunner().invoke(iblip, [*shown, "--print-command", "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.output)["command"]
    printed = printed[printed.index("--") + 1 :]  # a wall comes first, before the Triton here
    ports = {"http": 8000, "grpc": 8001, "metrics": 8002}
    watched = triton_arguments(
        vicuna_build / "model_repository",
        ServerOptions(host="0.0.0.0"),
        ports,
        find_triton(),
        tmp_path,
    )
    anew = re.compile(r"--backend-directory=.*|(?<=iblip-closed=)\w+")  # made every time
    assert [anew.sub("", word) for word in printed] == [anew.sub("", word) for word in watched]
    assert f"--model-repository={vicuna_build / 'model_repository'}" in printed
    for flag in ("--strict-readiness=true", "--exit-on-error=true", "--model-control-mode=none"):
        assert flag in printed


def test_compose_keeps_to_the_recipe(tmp_path):
    service = compose("compose.yaml", IBLIP_BUILD=str(tmp_path))
    assert service["build"] == {"context": str(REPOSITORY), "dockerfile": "deploy/Dockerfile"}
    assert service["image"] == f"iblip:{DEPLOYED.tag.partition('-')[0]}"
    (mount,) = service["volumes"]
    assert (mount["source"], mount["target"]) == (str(tmp_path), "/build")
    assert mount["read_only"]
    assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
    assert [port["target"] for port in service["ports"]] == [8000, 8001, 8002, 8003]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert int(service["shm_size"]) == 1 << 30
    (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (gpu["driver"], gpu["count"], gpu["capabilities"]) == ("nvidia", 1, ["gpu"])
    limits = service["deploy"]["resources"]["limits"]
    assert int(limits["memory"]) == 16 << 30
    assert service["healthcheck"]["start_period"] == "10m0s"
    assert "test" not in service["healthcheck"]  # the image's own


def test_every_variable_is_taken_and_explained(tmp_path):
    text = "".join(file.read_text() for file in DEPLOY.glob("compose*.yaml"))
    names = set(re.findall(r"\$\{(IBLIP_\w+)", text))
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    assert names == set(re.findall(r"`(IBLIP_\w+)`", page))
    service = compose(
        "compose.yaml",
        IBLIP_BUILD=str(tmp_path),
        IBLIP_ADDRESS="0.0.0.0",
        IBLIP_HTTP_PORT="9000",
        IBLIP_GPUS="2",
        IBLIP_SHM_SIZE="2gb",
    )
    assert (service["ports"][0]["host_ip"], service["ports"][0]["published"]) == ("0.0.0.0", "9000")
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
    assert int(service["shm_size"]) == 2 << 30


def test_without_a_gpu_none_is_asked_for(tmp_path):
    service = compose("compose.yaml", "compose.cpu.yaml", IBLIP_BUILD=str(tmp_path))
    assert not service["deploy"]["resources"].get("reservations")
    assert service["build"]["args"] == {"EXTRA": "runtime-cpu"}
    other = {"IBLIP_BUILD": str(tmp_path), "IBLIP_EXTRA": "runtime-openvino"}
    service = compose("compose.yaml", "compose.cpu.yaml", **other)
    assert service["build"]["args"] == {"EXTRA": "runtime-openvino"}
    assert service["deploy"]["resources"]["limits"]


def test_a_build_must_be_named():
    done = subprocess.run(
        [BIN / "docker-compose", "-f", DEPLOY / "compose.yaml", "config"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode != 0
    assert "name the directory of a build" in done.stderr


def test_the_page_has_the_table_of_containers():
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    for tag, row in CONTAINERS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{tag}` ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == row.triton
        assert cells[2] == (row.tensorrt or "")
        assert cells[3] == row.cuda
        assert cells[4].startswith(f"{row.least_driver} or newer")
        assert row.driver is None or row.driver in cells[4]
        assert cells[5] == (row.onnxruntime or "")
        assert (cells[6], cells[7]) == (row.python, ", ".join(row.backends))
