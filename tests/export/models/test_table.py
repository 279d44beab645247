"""The table of the released models, against transformers' own modules and the published sizes."""

from __future__ import annotations

import pytest
import torch
import transformers

from iblip.export.components.without_memory import without_memory
from iblip.export.models.table import MODELS

PUBLISHED = {
    "instructblip-vicuna-7b": (985_952_256, 185_660_160, 3_149_824, 6_738_423_808),
    "instructblip-vicuna-13b": (985_952_256, 185_660_160, 3_937_280, 13_015_874_560),
    "instructblip-flan-t5-xl": (985_952_256, 185_660_160, 1_574_912, 2_849_757_184),
    "instructblip-flan-t5-xxl": (985_952_256, 185_660_160, 3_149_824, 11_135_332_352),
    "blip2-opt-2.7b": (985_952_256, 105_137_664, 1_968_640, 2_651_596_800),
    "blip2-flan-t5-xl": (985_952_256, 105_137_664, 1_574_912, 2_849_757_184),
}
"""Counted in transformers' own models; the Q-Former without its query tokens."""

QFORMERS = {
    "instruction_qformer": (
        transformers.InstructBlipQFormerModel,
        transformers.InstructBlipQFormerConfig,
    ),
    "qformer": (transformers.Blip2QFormerModel, transformers.Blip2QFormerConfig),
}


def count(kind, config) -> int:
    with without_memory():
        return sum(weight.numel() for weight in kind(config).parameters())


def language_model(text) -> int:
    config = transformers.AutoConfig.for_model(**text)
    kind = (
        transformers.AutoModelForSeq2SeqLM
        if text["model_type"] == "t5"
        else transformers.AutoModelForCausalLM
    )
    with torch.device("meta"):  # transformers ties weights as it initialises them
        model = kind.from_config(config)
    if not text["tie_word_embeddings"]:
        # transformers ties T5's whatever the config says, and unties them where a file has both.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_have_been_published(name):
    model = MODELS[name]
    found = dict(model.parameters)
    found["qformer"] -= model.num_query_tokens * model.qformer["hidden_size"]
    assert tuple(found.values()) == PUBLISHED[name]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_parameters_are_those_of_transformers_modules(model):
    found = model.parameters
    vision = transformers.Blip2VisionConfig(**model.vision)
    assert found["vision_encoder"] == count(transformers.Blip2VisionModel, vision)
    assert found["language_model"] == language_model(model.text)
    if model.qformer is None:
        assert found["qformer"] == 0
        assert found["projection"] == 4096 * (4 * 1408 + 1)
        return
    kind, config = QFORMERS[model.family.projector]
    queries = model.num_query_tokens * model.qformer["hidden_size"]
    assert found["qformer"] == queries + count(kind, config(**model.qformer))


def test_names_are_unique_and_every_model_has_an_original():
    originals = [model.original for model in MODELS.values()]
    assert len(set(originals)) == len(MODELS) == 15
    assert all(model.hub in (None, f"Salesforce/{model.name}") for model in MODELS.values())


def test_the_captioners_and_minigpt_v2_look_at_larger_pictures():
    sizes = {name: model.image_size for name, model in MODELS.items()}
    assert sizes["minigpt-v2"] == 448
    assert {name for name, size in sizes.items() if size == 364} == {
        name for name in MODELS if name.endswith("-coco")
    }
