"""What an installation has: one package, whole, which nothing in a user's folder disturbs."""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import iblip
from iblip.export import errors
from iblip.serving.client import errors as client_errors
from tests.pins import PINS

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("export", "engines", "serving", "model_repository")
BESIDE = (
    "pyproject.toml",
    "setup.cfg",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "SECURITY.md",
    "constraints.txt",
)
"""What packages are made from besides the folders."""

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DEMO = "instructblip-demo-vicuna"
SETUPTOOLS = "77"
"""What `pyproject.toml` builds with, or a later one."""

BUILD = """\
import sys
from setuptools import build_meta

kind, target = sys.argv[1:]
print(getattr(build_meta, f"build_{kind}")(target))
"""


def python(*arguments, cwd=REPOSITORY, executable=sys.executable, **variables):
    """What a Python prints that imports this project from where it is."""
    done = subprocess.run(
        [executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_sources(target):
    """A checkout, as far as the package goes, with links as links and none of Python's caches."""
    target.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("iblip", *ROOMS):
        shutil.copytree(REPOSITORY / name, target / name, symlinks=True, ignore=ignore)
    for name in BESIDE:
        shutil.copy(REPOSITORY / name, target)
    return target


def make(kind, tree, target):
    """Builds an sdist, a wheel, or an editable wheel, as pip has them built."""
    target.mkdir(exist_ok=True)
    return target / python("-c", BUILD, kind, target, cwd=tree).split()[-1]


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def setuptools():
    """Installed, and new enough for the packages to be built by it here."""
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed, which builds packages")
    if Version(version) < Version(SETUPTOOLS):
        pytest.skip(f"setuptools {version} is installed; building wants {SETUPTOOLS}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every file that a wheel must have, by its path in the package, from a clean copy."""
    tree = copy_sources(tmp_path_factory.mktemp("sources") / "tree")
    files = digests(tree / "iblip")
    for name in ROOMS:
        files |= {f"{name}/{path}": data for path, data in digests(tree / name).items()}
    return files


@pytest.fixture(scope="module")
def checkout(setuptools, tmp_path_factory):
    """A checkout that has been worked in: Python's caches are in it."""
    tree = copy_sources(tmp_path_factory.mktemp("first") / "tree")
    cache = tree / "model_repository" / "qformer" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"compiled")
    return tree


def test_a_wheel_has_one_package_and_all_of_it(checkout, sources, tmp_path):
    wheel = make("wheel", checkout, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names} - {"iblip"}
        assert archive.read(f"{info}/top_level.txt").split() == [b"iblip"]
        got = {
            name.removeprefix("iblip/"): archive.read(name)
            for name in names
            if name.startswith("iblip/")
        }
    assert len(names) == len(set(names))
    assert info == f"iblip-{PROJECT['version']}.dist-info"
    assert got.keys() == sources.keys()
    assert got == sources
    assert {
        "py.typed",
        "serving/gateway/page.html",
        "serving/parity/page.css",
        "serving/server/wall/classification.c",
        "engines/language_model/vllm/constraints.txt",
        "model_repository/instructblip/config.pbtxt",
        "model_repository/qformer/1/model.py",
    } <= got.keys()


def test_an_sdist_has_the_same_files_and_no_links(checkout, sources, tmp_path):
    sdist = make("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        assert not any(member.issym() or member.islnk() for member in archive)
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert digests(tree / "iblip") == sources
    assert set(BESIDE) - {"MANIFEST.in"} <= digests(tree).keys()


@pytest.fixture(scope="module")
def wheels(checkout, tmp_path_factory):
    """Both wheels, as `make wheel` has them."""
    target = tmp_path_factory.mktemp("dist")
    demo = tmp_path_factory.mktemp("demo") / "demo"
    shutil.copytree(REPOSITORY / "demo", demo)  # with files in the place of links
    return make("wheel", checkout, target), make("wheel", demo, target)


def test_the_demo_model_is_a_wheel_of_its_own(wheels, tmp_path):
    with zipfile.ZipFile(wheels[1]) as archive:
        got = {
            name.removeprefix(f"iblip_demo/{DEMO}/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"iblip_demo/{DEMO}/")
        }
        told = message_from_bytes(
            archive.read(f"iblip_demo-{PROJECT['version']}.dist-info/METADATA")
        )
    shutil.copytree(REPOSITORY / "checkpoints" / DEMO, tmp_path / DEMO)  # its examples are a link
    assert got == digests(tmp_path / DEMO)
    assert told["Version"] == PROJECT["version"]


def test_a_build_of_a_package_leaves_the_builds_of_models_alone(wheels, checkout):
    assert not (checkout / "build").exists()


class TestMetadata:
    @pytest.fixture(scope="class")
    def told(self, wheels):
        with zipfile.ZipFile(wheels[0]) as archive:
            name = f"iblip-{PROJECT['version']}.dist-info/METADATA"
            return message_from_bytes(archive.read(name))

    def test_it_has_links_classifiers_and_a_description(self, told):
        links = told.get_all("Project-URL")
        assert len(links) == len(PROJECT["urls"]) >= 3
        assert all(", https://" in link for link in links)
        pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
        assert pythons | {"Typing :: Typed"} <= set(told.get_all("Classifier"))
        assert told["License-Expression"] == "Apache-2.0"
        assert told.get_payload().startswith("# iblip")

    def test_the_change_log_has_the_version(self):
        changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
        assert changes.split("\n## ")[1].startswith(PROJECT["version"])
        assert (
            tomllib.loads((REPOSITORY / "demo/pyproject.toml").read_text())["project"]["version"]
            == (PROJECT["version"])
        )

    def test_the_client_is_light_and_the_server_stays_out_of_python_3_13(self, told):
        needed = [Requirement(line) for line in told.get_all("Requires-Dist")]
        machine = {"sys_platform": "linux", "platform_machine": "x86_64"}

        def names(extra, python):
            around = {**machine, "python_version": python, "extra": extra}
            return {one.name for one in needed if not one.marker or one.marker.evaluate(around)}

        client = {"click", "grpcio", "numpy", "pillow", "protobuf"}
        assert names("", "3.11") == names("", "3.13") == client
        assert names("server", "3.12") - client == {"aiohttp", "nvidia-pytriton"}
        assert names("server", "3.13") == client

    def test_every_direct_requirement_is_pinned(self):
        lines = [*PROJECT["dependencies"]]
        extras = ("cpu", "export", "gateway", "runtime", "server", "tensorrt-rtx", "docs", "dev")
        for extra in extras:
            lines += PROJECT["optional-dependencies"][extra]
        pinned = {canonicalize_name(name) for name in PINS}
        named = {canonicalize_name(Requirement(line).name) for line in lines} - {"iblip"}
        assert named - pinned == set()


def test_pre_commit_has_the_checks_of_make_lint():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^lint: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (.*)", hooks) == checks


ELSEWHERE = """\
import pathlib, iblip
assert "site-packages" in iblip.__file__, iblip.__file__
with iblip.load("build/demo") as model:
    print(model.ask("photo.webp", "What digit is in the image?").text)
"""


def installed(directory, *requirements):
    """A fresh environment with packages of the registry; its Python."""
    venv.create(directory, with_pip=True)
    executable = directory / "bin" / "python"
    pins = ["--disable-pip-version-check", "--quiet", "-c", REPOSITORY / "constraints.txt"]
    python("-m", "pip", "install", *pins, *requirements, executable=executable, PYTHONPATH="")
    return executable


def size(directory):
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.mark.exhaustive
def test_the_client_is_installed_from_the_wheel_in_little_space(wheels, tmp_path):
    executable = installed(tmp_path / "env", wheels[0])
    told = python("-m", "iblip", "models", cwd=tmp_path, executable=executable, PYTHONPATH="")
    assert "instructblip-vicuna-7b" in told
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    pip = sum(size(path) for path in site.glob("pip*")) + sum(map(size, site.glob("setuptools*")))
    assert size(tmp_path / "env") - pip <= 145_000_000


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_the_wheels_build_and_answer_elsewhere(wheels, tmp_path):
    """With all that `iblip[cpu]` needs, in a fresh environment, outside of a checkout."""
    executable = installed(tmp_path / "env", f"{wheels[0]}[cpu]", wheels[1])
    image = REPOSITORY / "checkpoints/heldout/images/heldout-000.webp"
    shutil.copy(image, tmp_path / "photo.webp")
    build = ("-m", "iblip", "build", "--limit", 8, "--output", "build/demo")
    python(*build, cwd=tmp_path, executable=executable, PYTHONPATH="")
    told = python("-c", ELSEWHERE, cwd=tmp_path, executable=executable, PYTHONPATH="")
    assert told == "3\n"


PLACES = """\
import sys
import iblip.engines.hardware.findings, iblip.export.errors, iblip.model_repository
import iblip.serving.server.log
for name, module in sys.modules.items():
    if name.partition(".")[0] == "iblip":
        print(module.__file__)
"""


def test_a_second_worktree_is_not_mixed_with_what_is_installed(checkout, tmp_path):
    """An editable installation of one, and Python run in the other."""
    second = copy_sources(tmp_path / "second")
    venv.create(tmp_path / "env", with_pip=False)
    site = next(tmp_path.glob("env/lib/python*/site-packages"))
    with zipfile.ZipFile(make("editable", checkout, tmp_path / "editable")) as archive:
        archive.extractall(site)
    (tmp_path / "user").mkdir()

    for cwd, tree in ((tmp_path / "user", checkout), (second, second)):
        executable = tmp_path / "env" / "bin" / "python"
        places = python("-c", PLACES, cwd=cwd, executable=executable, PYTHONPATH="").splitlines()
        assert len(places) > 8
        assert all(Path(path).is_relative_to(tree / "iblip") for path in places), places


RIGHT = """\
from pathlib import Path

import iblip

build: iblip.Build = iblip.build("a/b", precision="fp16", slots=4, progress=None)
with iblip.load(build) as model:
    text: str = model.ask(Path("a.png"), "What?", max_new_tokens=30).text
    pieces: list[str] = list(model.stream(b"", "What?"))
    texts: list[str] = [row.text for row in model.map([("a.png", "?")], progress=True)]
with iblip.serve(build) as server, iblip.Client(server.url) as client:
    answer: iblip.Answer = client.ask("a.png", "What?", max_new_tokens=30)
passed: bool = iblip.verify(build).passed
"""

WRONG = """\
import iblip

iblip.build("a/b", slots="four")
iblip.load("a").ask("a.png", "What?", max_new_tokens="30")
iblip.serve("a", grpc_port="0")
iblip.verify("a").saved()
"""


class TestFace:
    def test_it_names_what_users_need_and_every_error(self):
        classes = {
            name
            for module in (errors, client_errors)
            for name, value in inspect.getmembers(module, inspect.isclass)
            if issubclass(value, errors.IblipError)
        }
        calls = {"build", "load", "run", "serve", "verify", "lavis"}
        made = {"Build", "BulkSummary", "Model", "Server", "Report"}
        made |= {"Answer", "AnswerStream", "RowResult"}
        clients = {"Client", "AsyncClient", "Timeout", "Retries", "ImageURLs"}
        others = {"GenerationOptions", "Step", "MapProgress"}
        assert iblip.__all__ == ["TLS", *sorted(calls | made | clients | others | classes)]
        assert len(iblip.__doc__.splitlines()) > 10

    def test_no_module_has_the_name_of_a_function(self):
        """Importing `iblip.build`, say, would put the module in the function's place."""
        modules = {module.name for module in pkgutil.iter_modules(iblip.__path__)}
        assert not modules & (set(iblip.__all__) - {"lavis"})

    def test_every_name_is_there_for_programs_and_for_type_checkers(self):
        for name in iblip.__all__:
            assert getattr(iblip, name).__name__.removeprefix("iblip.") == name
            assert getattr(iblip, name).__doc__
        assert set(iblip.__all__) <= set(dir(iblip))
        assert "Any" not in dir(iblip)  # nor what else the module has imported
        tree = ast.parse(Path(iblip.__file__).read_text())
        (block,) = [node for node in tree.body if isinstance(node, ast.If)]
        imported = {alias.name for node in block.body for alias in node.names}
        assert imported == set(iblip.__all__)
        assert (Path(iblip.__file__).parent / "py.typed").is_file()
        with pytest.raises(AttributeError, match="has no attribute 'Clint'"):
            _ = iblip.Clint
        assert iblip.__version__ == metadata.version("iblip")

    def test_a_users_program_is_checked_by_its_types(self, tmp_path):
        """What a type checker says of a program that is right, and of one that is wrong."""
        for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
            (tmp_path / name).write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", tmp_path / "right.py", tmp_path / "wrong.py"],
            cwd=REPOSITORY,  # for the cache of `make lint`
            capture_output=True,
            text=True,
            check=False,
        )
        faults = [line.rpartition("/")[2].split(":") for line in done.stdout.splitlines()[:-1]]
        assert [fault[:2] for fault in faults] == [
            ["wrong.py", str(line)] for line in range(3, 3 + WRONG.count("iblip."))
        ], done.stdout

    def test_importing_it_loads_nothing_else(self):
        show = "import sys, iblip; {}print(*(name.partition('.')[0] for name in sys.modules))"
        empty = set(python("-c", show.replace(", iblip", "").format("")).split())
        alone = set(python("-c", show.format("")).split())
        assert "iblip" in alone
        assert not {name for name in alone - empty if name not in sys.stdlib_module_names} - {
            "iblip"
        }
        client = set(python("-c", show.format("iblip.Client; ")).split())
        assert "grpc" in client
        assert not client & {"torch", "transformers", "onnxruntime", "onnx", "onnx_ir"}


@pytest.fixture
def own_folder(tmp_path):
    """A user's folder, whose modules have the names of this project's rooms and end the program."""
    for name in ("serving", "engines", "model_repository"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the user has {name}')")
    (tmp_path / "export.py").write_text("raise SystemExit('the user has export.py')")
    return tmp_path


class TestInAUsersFolder:
    """`python -m` and `python -c` look into it before they look anywhere else."""

    def test_the_commands_are_there(self, own_folder):
        told = python("-m", "iblip", "--help", cwd=own_folder, PYTHONPATH=str(REPOSITORY))
        assert told.startswith("Usage: iblip")

    def test_the_client_is_imported(self, own_folder):
        code = "from iblip import Client; print(Client.__module__)"
        told = python("-c", code, cwd=own_folder, PYTHONPATH=str(REPOSITORY))
        assert told.strip() == "iblip.serving.client.sync"

    def test_a_build_begins(self, own_folder):
        """And ends before it loads torch: what it is to build is not there."""
        done = subprocess.run(
            [sys.executable, "-m", "iblip", "build", "--model", "nothing"],
            cwd=own_folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"error: there is no checkpoint directory {own_folder / 'nothing'}" in done.stderr


def test_export_is_a_command_of_a_checkout():
    assert python("-m", "export", "build", "--help").startswith("Usage: export build")
