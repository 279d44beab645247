"""The command that installs what is missing, wherever this copy came from."""

from __future__ import annotations

import json
import shlex
import tomllib
from importlib import metadata
from importlib.metadata import PathDistribution

import pytest

from iblip.export.system import installing
from iblip.export.system.installing import EXTRAS, install_command, missing_package


def test_a_checkout_is_named_by_its_path():
    words = shlex.split(install_command("cpu"))
    assert words[:3] == ["pip", "install", "-e"]
    place, _, extra = words[3].rpartition("[")
    assert extra == "cpu]"
    assert f"{place}/pyproject.toml" == str(installing.CHECKOUT / "pyproject.toml")
    assert shlex.split(install_command())[3] == place


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A copy that is no checkout, with metadata as the test has it."""
    monkeypatch.setattr(installing, "CHECKOUT", tmp_path)

    def call(recorded=None, links=()):
        info = tmp_path / "iblip-0.0.0.dist-info"
        info.mkdir(exist_ok=True)
        lines = ["Metadata-Version: 2.4", "Name: iblip", "Version: 0.0.0"]
        (info / "METADATA").write_text("\n".join([*lines, *links]) + "\n\n")
        (info / "direct_url.json").unlink(missing_ok=True)
        if recorded is not None:
            (info / "direct_url.json").write_text(json.dumps(recorded))
        monkeypatch.setattr(metadata, "distribution", lambda name: PathDistribution(info))

    return call


def test_a_copy_is_named_by_where_it_came_from(installed):
    installed({"url": "file:///downloads/iblip-0.0.0.whl", "archive_info": {}})
    assert install_command("gpu") == "pip install 'iblip[gpu] @ file:///downloads/iblip-0.0.0.whl'"
    installed({"url": "https://example.org/iblip", "vcs_info": {"vcs": "git", "commit_id": "0"}})
    assert install_command("cpu") == "pip install 'iblip[cpu] @ git+https://example.org/iblip'"
    installed(links=["Project-URL: Source, https://example.org/source"])
    assert install_command() == "pip install 'iblip @ git+https://example.org/source'"
    installed()
    assert install_command("cpu") == "pip install 'iblip[cpu] @ git+URL'"


def test_a_missing_module_is_told_with_the_extra_that_has_it():
    error = missing_package(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert "this needs torch, which is not installed" in str(error)
    assert f"`{install_command('cpu')}`" in str(error)
    assert missing_package(ModuleNotFoundError(name="nobodys_module")) is None
    assert missing_package(ImportError(name="torch")) is None


def test_extras_are_those_of_the_project():
    project = tomllib.loads((installing.CHECKOUT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_no_message_writes_such_a_command_itself():
    rooms = ("export", "engines", "serving")
    for path in (file for room in rooms for file in (installing.CHECKOUT / room).rglob("*.py")):
        assert "pip install 'iblip" not in path.read_text() or path.name == "installing.py", path
