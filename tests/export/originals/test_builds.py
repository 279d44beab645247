"""Builds of LAVIS's files are the builds of the Hugging Face form: graphs, weights, answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import BuildDirectoryError
from iblip.export.examples import read_examples
from iblip.export.graph.digest import check_digests
from iblip.export.images import pixels_from_image
from iblip.lavis import load_model_and_preprocess
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from iblip.serving.cli.quiet import quiet_libraries

NAMES = {
    "vicuna_pair": ("lavis:blip2_vicuna_instruct/vicuna7b", "fp32"),
    "flant5_pair": ("lavis:blip2_t5_instruct/flant5xl", "fp16"),
}
"""Each pair's model, and the precision in which its weights are stored, and so read in place."""

REPRODUCED = {
    "vicuna_pair": "LlamaTokenizer of transformers 4.33.2, legacy=True",
    "flant5_pair": "T5TokenizerFast of transformers 4.33.2",
}

QUESTIONS = 8


def digests(manifest):
    return {
        f"{component}/{name}": graph.digest
        for component, record in manifest.components.items()
        for name, graph in record.graphs.items()
    }


def texts(directory, manifest, questions):
    options = GenerationOptions(max_new_tokens=24)
    with Pipeline(directory) as pipeline:
        return [
            pipeline.answer(
                pixels_from_image(question.image, manifest.preprocessing), question.prompt, options
            ).text
            for question in questions
        ]


@pytest.mark.parametrize("fixture", NAMES)
def test_graphs_and_answers_are_those_of_hugging_faces_form(
    fixture, request, tmp_path, checkpoints
):
    quiet_libraries()
    pair = request.getfixturevalue(fixture)
    model, precision = NAMES[fixture]
    options = {"precision": precision, "verification": None}
    source = ModelSource(model=model, parts=pair.parts)
    found = build(BuildOptions(source=source, output=tmp_path / "lavis", **options))
    source = ModelSource(model=str(pair.directory))
    wanted = build(BuildOptions(source=source, output=tmp_path / "hf", **options))
    ours, theirs = Manifest.read(found), Manifest.read(wanted)
    assert digests(ours) == digests(theirs)
    assert ours.text.reproduces == REPRODUCED[fixture]
    assert replace(ours.text, reproduces="") == theirs.text
    check_digests(found, ours)  # what lies on the disk, where the graphs say that it lies

    assert ours.source["parts"] == {part: str(path) for part, path in pair.parts.items()}
    assert {"checkpoint/model.pth", "vit/model.pth"} < ours.source["files"].keys()
    files = {path.stat().st_ino for path in (found / "graphs").rglob("*.pth")}
    assert {pair.parts[part].stat().st_ino for part in ("checkpoint", "vit")} <= files

    questions = read_examples(checkpoints / "heldout", QUESTIONS)
    answers = texts(found, ours, questions)
    assert answers == texts(wanted, theirs, questions)
    assert len(set(answers)) > 1


def test_lavis_name_is_built_on_first_use_and_found_again(vicuna_pair, tmp_path, checkpoints):
    question = read_examples(checkpoints / "heldout", 1)[0]
    asked = {
        "name": "blip2_vicuna_instruct",
        "model_type": "vicuna7b",
        "builds": str(tmp_path),
        "verify": False,
    }
    steps = []
    model, vis_processors, _ = load_model_and_preprocess(
        **asked, parts=vicuna_pair.parts, progress=steps.append
    )
    assert [path.name for path in tmp_path.glob("*/")] == ["blip2_vicuna_instruct-vicuna7b-fp32"]
    assert "write weights" in {step.text for step in steps}
    with model:
        image = vis_processors["eval"](Image.open(question.image).convert("RGB")).unsqueeze(0)
        texts = model.generate({"image": image, "prompt": question.prompt})
    again, _, _ = load_model_and_preprocess(**asked, precision="fp32")  # of no parts
    with again:
        assert again.generate({"image": image, "prompt": question.prompt}) == texts
    for other in ({"precision": "fp16"}, {"model_type": "vicuna13b"}):
        with pytest.raises(BuildDirectoryError, match="that fits"):
            load_model_and_preprocess(**{**asked, **other})
