"""What builds are held against, where transformers cannot read the checkpoint by itself."""

from dataclasses import replace

import pytest
import torch

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import CheckpointError
from iblip.export.verification.loading import load_model
from iblip.export.verification.references import reference_of


@pytest.fixture
def elsewhere(tmp_path):
    """The checkpoint with only its language model's config where its directory is."""
    (tmp_path / "config.json").write_text('{"architectures": ["OPTForCausalLM"]}')
    return lambda checkpoint: replace(checkpoint, directory=tmp_path)


@pytest.mark.parametrize("kind", ["llama", "opt", "blip2-t5"])  # OPT's embeddings are tied
def test_modules_filled_here_are_those_that_transformers_reads(tiny, elsewhere, kind):
    checkpoint = checkpoint_from_directory(tiny(kind))
    wanted = load_model(checkpoint).state_dict()
    found = load_model(elsewhere(checkpoint)).state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_a_weight_that_is_not_there_is_named(tiny, elsewhere):
    checkpoint = checkpoint_from_directory(tiny("opt"))
    tensors = {k: v for k, v in checkpoint.tensors.items() if k != "language_projection.bias"}
    with pytest.raises(CheckpointError, match=r"has no language_projection\.bias"):
        load_model(replace(elsewhere(checkpoint), tensors=tensors))


def test_answers_stay_within_the_positions_there_are(tiny, checkpoints):
    from PIL import Image

    reference = reference_of(checkpoint_from_directory(tiny("minigpt4")), positions=60)
    asked = "What digit is in the image?"
    picture = Image.open(checkpoints / "heldout" / "images" / "heldout-000.webp")
    (answer,) = reference.generate([picture], [asked], max_new_tokens=1000)
    assert sum(reference.lengths(asked)) + 4 + len(answer.token_ids) == 60
