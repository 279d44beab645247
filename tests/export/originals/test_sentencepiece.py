"""Language models whose tokenizer is a sentencepiece model alone, as the released Vicuna is."""

from __future__ import annotations

import shutil
import sys

import pytest
from sentencepiece import SentencePieceProcessor

from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError
from iblip.export.originals.reading import checkpoint_from_original
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries

NAMES = {
    "vicuna": ("llama", "blip2_vicuna_instruct/vicuna7b"),
    "flant5": ("t5", "blip2_t5_instruct/flant5xl"),
}
END = {"llama": 2, "t5": 1}
"""Ids of `</s>`, which LAVIS's Vicuna begins with and T5 ends with."""


@pytest.fixture(params=NAMES)
def parts(request, tiny_pair, with_sentencepiece, tmp_path):
    """The kind, LAVIS's name and the parts of a tiny model."""
    kind, name = NAMES[request.param]
    parts = dict(tiny_pair(request.param).parts)
    directory = shutil.copytree(parts["language_model"], tmp_path / "language_model")
    return kind, name, {**parts, "language_model": with_sentencepiece(directory, kind)}


def test_it_is_built_and_its_ids_are_sentencepieces(parts, tmp_path, sentencepiece_models):
    kind, name, files = parts
    quiet_libraries()
    source = ModelSource(model=f"lavis:{name}", parts=files)
    path = build(BuildOptions(source=source, output=tmp_path / "build", verification=None))
    pieces = SentencePieceProcessor(model_file=str(sentencepiece_models[kind]))
    tokenizer = PromptTokenizer.from_build(path, Manifest.read(path))
    for text in ("What is the model?", "Why? Say it in 12 words."):
        text_ids, end = pieces.encode(text), END[kind]
        wanted = [end, *text_ids] if kind == "llama" else [*text_ids, end]
        assert list(tokenizer(text).ids) == wanted


def test_a_directory_in_hugging_faces_form_is_read_too(
    tiny_copy, with_sentencepiece, sentencepiece_models
):
    directory = with_sentencepiece(
        tiny_copy("vicuna"), "llama", {"bos_token": "<s>", "eos_token": "</s>"}
    )
    pieces = SentencePieceProcessor(model_file=str(sentencepiece_models["llama"]))
    tokenizer = checkpoint_from_directory(directory).processor.tokenizer
    assert tokenizer("What is it?").input_ids == [1, *pieces.encode("What is it?")]


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:", b""]
)
def test_a_file_that_is_no_sentencepiece_model_is_told(parts, content):
    _, name, files = parts
    model = next(files["language_model"].glob("*.model"))
    model.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint_from_original("lavis", name, files)
    assert f"{model} is not a sentencepiece model" in str(error.value)
    assert "tiktoken" not in str(error.value)


def test_a_sentencepiece_that_does_not_fit_protobuf_is_told(parts, monkeypatch, tmp_path):
    """What a release generated with another protobuf does when it is imported."""
    _, name, files = parts
    stranger = tmp_path / "sentencepiece"
    stranger.mkdir()
    (stranger / "__init__.py").touch()
    (stranger / "sentencepiece_model_pb2.py").write_text(
        "from google.protobuf import runtime_version as runtime\n"
        "runtime.ValidateProtobufRuntimeVersion(\n"
        "    runtime.Domain.PUBLIC, 99, 0, 0, '', 'sentencepiece_model.proto')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in [one for one in sys.modules if one.partition(".")[0] == "sentencepiece"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(CheckpointError) as error:
        checkpoint_from_original("lavis", name, files)
    assert "does not work with protobuf" in str(error.value)
    assert "pip install" in str(error.value)
    assert "tiktoken" not in str(error.value)
