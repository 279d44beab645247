"""The calls on docs/wire.md, taken from the page and run as a reader would run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from iblip.engines.language_model.options import GenerationOptions
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.errors import ERROR_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


def block(language, served):
    """The page's one block of that language, with this server's addresses."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace("127.0.0.1:8001", served.server.grpc_url)
    return code.replace("http://127.0.0.1:8000", served.server.http_url)


def run(command, folder, picture):
    shutil.copyfile(picture, folder / "image.png")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def reference(served, picture):
    options = GenerationOptions(max_new_tokens=40, stop=("###",))
    return served.in_process(picture, "Describe the image.", options)


def test_the_call_in_plain_tritonclient(served, picture, reference, tmp_path):
    output = run([sys.executable, "-c", block("python", served)], tmp_path, picture)
    assert output == f"{reference.text}\n{reference.finish_reason}\n{reference.text}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_call_with_curl(served, picture, reference, tmp_path):
    output = run(["bash", "-euc", block("bash", served)], tmp_path, picture)
    assert json.loads(output)["text"] == reference.text


def test_the_page_names_everything_that_travels(served, client):
    named = set(re.findall(r"`([a-z_A-Z]+)`", PAGE))
    assert {field.name for field in fields(GenerationOptions)} <= named
    assert set(ERROR_KINDS) <= named
    assert set(ServerContract.to_parameters(client.contract())) <= named
