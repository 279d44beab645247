"""What an engine is built for is what the client is told and the server refuses."""

from __future__ import annotations

import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import InputError, ServingError
from iblip.serving.client import Client
from iblip.serving.repository.assembling import REPOSITORY, repository_from_engines
from iblip.serving.server.server import TritonServer


def test_an_instruction_longer_than_the_engines_is_refused_with_the_flag(
    vicuna_build: Path, tmp_path: Path, picture: Path
) -> None:
    """As of a build whose Q-Former is a plan: `instructblip` reads its limit in the manifest."""
    build = Path(shutil.copytree(vicuna_build, tmp_path / "build", symlinks=True))
    manifest = Manifest.read(build)
    manifest = replace(manifest, limits=replace(manifest.limits, max_instruction=16))
    manifest.write(build)
    repository_from_engines(build, manifest)
    with TritonServer(build / REPOSITORY) as server, Client(server.grpc_url) as client:
        assert client.contract().limits.max_instruction == 16
        assert client.ask(picture, "What digit is in the image?").text
        with pytest.raises(InputError, match=r"has \d+ tokens; at most 16 fit\. ") as caught:
            client.ask(picture, "What digit is in the image? " * 4)
        assert "`--max-instruction` of `iblip build` raises it" in str(caught.value)


def test_an_onnx_runtime_qformer_takes_what_the_model_does(served, client, picture: Path) -> None:
    own = served.manifest.text.max_instruction
    assert client.contract().limits.max_instruction == own
    with pytest.raises(InputError, match=rf"at most {own} fit\. Shorten it") as caught:
        client.ask(picture, "What digit is in the image? " * own)
    assert "--max-instruction" not in str(caught.value)


def test_a_language_model_of_several_instances_is_refused_with_what_to_write(
    vicuna_build: Path, tmp_path: Path
) -> None:
    build = Path(shutil.copytree(vicuna_build, tmp_path / "build", symlinks=True))
    config = build / REPOSITORY / "instructblip" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    with (
        pytest.raises(ServingError, match=r"instructblip: .* asks for 2 instances.*`count: 1`"),
        TritonServer(build / REPOSITORY),
    ):
        pass


def test_a_prompt_that_does_not_fit_is_refused_before_its_image_is_encoded(served, client) -> None:
    """A very long word is one token to the Q-Former, and many to the language model."""

    def encoded() -> int:
        with urllib.request.urlopen(served.server.metrics_url, timeout=60) as response:
            text = response.read().decode()
        return int(re.search(r'nv_inference_count\{model="vision_encoder",.*\} (\d+)', text)[1])

    before = encoded()
    with pytest.raises(InputError, match="the prompt has"):
        client.ask(Image.new("RGB", (40, 40), (17, 3, 5)), "7" * 1200)
    assert encoded() == before
