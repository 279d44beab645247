import json

import pytest

from iblip.export.artifact.manifest import FORMAT, MANIFEST, Manifest
from iblip.export.errors import BuildDirectoryError


def test_a_build_reads_back_as_it_was_written(vicuna_build, tmp_path):
    manifest = Manifest.read(vicuna_build)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, f"is not a build: it has no {MANIFEST}"),
        ("{", "is not valid JSON"),
        ('{"format": 99}', f"has format 99; this version reads {FORMAT}"),
        ('{"format": 3}', f"has format 3; this version reads {FORMAT}. Build it again"),
        (f'{{"format": {FORMAT}}}', "is incomplete"),
        (f'{{"format": {FORMAT}, "components": []}}', "is incomplete"),
        ("[]", "has format None"),
    ],
)
def test_what_is_not_a_build_is_told(tmp_path, text, message):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BuildDirectoryError, match=message):
        Manifest.read(tmp_path)


def test_a_manifest_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BuildDirectoryError, match=r"manifest\.json cannot be read"):
        Manifest.read(tmp_path)


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(BuildDirectoryError, match="there is no directory"):
        Manifest.read(tmp_path / "none")


def test_the_manifest_records_source_tools_and_proof(vicuna_build):
    data = json.loads((vicuna_build / MANIFEST).read_text())
    assert data["source"]["files"].keys() == {"config.json", "model.safetensors"}
    assert {"torch", "transformers", "onnxruntime"} <= data["tools"].keys()
    assert all(found["passed"] for found in data["verification"]["graphs"].values())
    assert data["verification"]["text"]["passed"]
