"""Checkpoints that have more, less or other tensors than their config says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError
from iblip.export.weights.fit import check_fit
from iblip.export.weights.weight import Zeros
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions

WANTED = {
    f"language_model.model.layers.{layer}.self_attn.{part}_proj.weight": (4, 4)
    for layer in range(30)
    for part in "qkvo"
} | {"language_model.model.embed_tokens.weight": (9, 4)}
TIED = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}
UNSEEN = {"qformer.encoder.layer.11.intermediate.dense.weight"}


def check(*left_out: str, **added: tuple[int, ...]) -> None:
    shapes = {name: shape for name, shape in WANTED.items() if name not in left_out} | added
    tensors = {n: Zeros(name=n, dtype="float32", shape=shape) for n, shape in shapes.items()}
    check_fit(WANTED, tensors, TIED, known=UNSEEN)


@pytest.mark.parametrize(
    "name",
    [
        "qformer.embeddings.position_ids",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "language_model.h.0.attn.masked_bias",
        "language_model.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        *TIED,
        *UNSEEN,
    ],
)
def test_what_changes_no_answer_may_be_there(name: str) -> None:
    check(**{name: (9, 4)})


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.30.self_attn.q_proj.weight",
        "vision_model.blocks.0.self_attn.bias",
        "language_model.decoder.block.1.layer.1.EncDecAttention.relative_attention_bias.weight",
    ],
)
def test_any_other_tensor_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is read by no graph(.|\n)* would change"):
        check(**{name: (4, 4)})


def test_a_renamed_tensor_is_told_with_both_its_names() -> None:
    name = "language_model.model.layers.7.self_attn.q_proj.weight"
    other = name.replace("q_proj", "query")
    with pytest.raises(CheckpointError) as caught:
        check(name, **{other: (4, 4)})
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  {name} is missing (nearest: {other})"
    assert lines[2] == f"  {other} is read by no graph (nearest that is: {name})"


def test_of_many_faults_twenty_are_listed_and_all_are_counted() -> None:
    more = {f"language_model.model.layers.{i}.mlp.up_proj.weight": (4, 4) for i in range(25)}
    embed = "language_model.model.embed_tokens.weight"
    with pytest.raises(CheckpointError) as caught:
        check(embed, **{embed: (8, 4)}, **more)
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  {embed} has shape [8, 4], expected [9, 4]"
    assert len(lines) == 1 + 20 + 2
    assert lines[21] == "  and 6 more"


def test_a_checkpoint_that_does_not_fit_leaves_the_build_before_it(
    tiny_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tiny_copy("vicuna")
    weights, old = directory / "model.safetensors", tmp_path / "old" / "manifest.json"
    tensors = load_file(weights)
    tensors["qformer.encoder.layer.0.adapter.weight"] = torch.zeros(3)
    del tensors["query_tokens"]
    save_file(tensors, weights, metadata={"format": "pt"})
    old.parent.mkdir()
    old.write_text("what stood there")
    message = "query_tokens is missing.*\n.*0.adapter.weight is read by no graph"
    for output in (old.parent, tmp_path / "new"):
        with pytest.raises(CheckpointError, match=message):
            build(BuildOptions(source=ModelSource(model=str(directory)), output=output))
    assert [path.name for path in old.parent.iterdir()] == ["manifest.json"]
    assert old.read_text() == "what stood there"
    assert not (tmp_path / "new").exists()
