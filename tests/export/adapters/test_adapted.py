"""Checkpoints with adapters merged by this project answer as transformers with peft does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from iblip.export.adapters.adapted import Adapted
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import CheckpointError
from iblip.export.verification.loading import copy_config, fill, load_model
from iblip.export.verification.references import AssembledReference, WholeReference, reference_of
from iblip.export.weights.weight import SourceTensor
from tests.export.adapters.conftest import change, opened

Save = Callable[..., tuple[Path, Path]]

PROMPT = "which digit is red"
LM = ["q_proj", "v_proj", "down_proj"]
QFORMER = ["query", "value", "dense"]
VIT = ["self_attn.qkv", "self_attn.projection", "fc1", "patch_embedding"]


def logits(reference: Any, prompt: str = PROMPT) -> torch.Tensor:
    """Of first tokens, for two images."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(2)]
    result: torch.Tensor = reference.first_logits(images, [prompt] * 2)
    return result


def merged(checkpoint: Checkpoint) -> Any:
    """transformers' model, filled with the tensors that a build would read."""
    import transformers

    if checkpoint.family.processor is None:
        return AssembledReference(checkpoint, make=lambda kind, *rest: fill(kind(), *rest))
    kind = getattr(transformers, checkpoint.family.architecture)
    model = fill(kind(copy_config(checkpoint.config)), checkpoint.tensors, "")
    return WholeReference(checkpoint, model=model)


def check(checkpoint: Checkpoint, prompt: str = PROMPT) -> None:
    """Compares logits with peft's, and both with those of the checkpoint alone."""
    assert isinstance(checkpoint, Adapted)
    ours, peft = logits(merged(checkpoint), prompt), logits(reference_of(checkpoint), prompt)
    scale = peft.abs().max()  # of random weights, which are others in each process
    torch.testing.assert_close(ours / scale, peft / scale, rtol=1e-4, atol=1e-4)
    base = logits(reference_of(checkpoint.base))
    assert (peft[:, : base.shape[1]] - base).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("llama", {"target_modules": LM}, id="language model"),
        pytest.param("llama", {"target_modules": QFORMER, "use_rslora": True}, id="Q-Former"),
        pytest.param("llama", {"target_modules": VIT}, id="ViT"),
        pytest.param("llama", {"target_modules": [*LM, *QFORMER, *VIT]}, id="several"),
        pytest.param("t5", {"target_modules": ["q", "v", "wo", *QFORMER]}, id="T5"),
        pytest.param("opt", {"target_modules": ["fc1", "q_proj"], "lora_bias": True}, id="biases"),
        pytest.param("llama", {"target_modules": [*LM, *VIT], "use_dora": True}, id="DoRA"),
        pytest.param("llama", {"target_modules": ["embed_tokens"]}, id="embeddings"),
        pytest.param(
            "llama", {"target_modules": ["embed_tokens"], "use_dora": True}, id="DoRA of embeddings"
        ),
        pytest.param("opt", {"target_modules": ["embed_tokens"]}, id="embeddings that are tied"),
        pytest.param("llama", {"target_modules": QFORMER, "bias": "lora_only"}, id="their biases"),
        pytest.param("llama", {"target_modules": QFORMER, "bias": "all"}, id="all biases"),
        pytest.param(
            "llama",
            {"target_modules": LM, "modules_to_save": ["language_projection"], "bias": "all"},
            id="modules to save",
        ),
        pytest.param(
            "t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}, id="T5's head"
        ),
        pytest.param(
            "llama",
            {
                "target_modules": [*LM, *QFORMER],
                "rank_pattern": {r"layers\.0\.self_attn.q_proj": 2, "query": 3},
                "alpha_pattern": {"dense": 5, "v_proj": 1},
                "use_rslora": True,
            },
            id="patterns",
        ),
        pytest.param(
            "llama",
            {
                "target_modules": ["query"],
                "target_parameters": ["embeddings.position_embedding", "q_proj.weight"],
            },
            id="parameters",
        ),
        pytest.param("minigpt4", {"target_modules": [*LM, "query"]}, id="MiniGPT-4"),
        pytest.param(
            "llama",
            {"target_modules": LM, "lora_alpha": -4, "alpha_pattern": {"q_proj": 0}},
            id="alphas that are not above 0",
        ),
    ],
)
def test_answers_are_those_of_peft(save_adapter: Save, kind: str, options: Any) -> None:
    base, adapter = save_adapter(kind, **options)
    checkpoint = opened(base, adapter)
    check(checkpoint)
    assert isinstance(checkpoint, Adapted)
    untouched = [n for n, t in checkpoint.tensors.items() if t is checkpoint.base.tensors.get(n)]
    assert untouched
    touched = checkpoint.tensors.keys() - untouched
    assert not any(isinstance(checkpoint.tensors[name], SourceTensor) for name in touched)


def test_weights_are_those_that_peft_merges(save_adapter: Save) -> None:
    from peft import PeftModel

    base, adapter = save_adapter("llama", target_modules=[*LM, *VIT, "query"], use_dora=True)
    checkpoint = opened(base, adapter)
    model = PeftModel.from_pretrained(load_model(opened(base)), adapter).merge_and_unload()
    for name, weight in model.state_dict().items():
        if name in checkpoint.tensors:
            own = checkpoint.tensors[name].read()
            np.testing.assert_allclose(own, weight, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_pickled_adapter_is_read_without_running_it(save_adapter: Save) -> None:
    base, adapter = save_adapter("llama", target_modules=LM)
    file = adapter / "adapter_model.safetensors"
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    expected = opened(base, adapter).tensors[name].read()
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    check(opened(base, adapter))
    np.testing.assert_array_equal(opened(base, adapter).tensors[name].read(), expected)
    torch.save({"x": print}, adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="loading that would run code from the file"):
        opened(base, adapter)


def test_adapters_are_merged_in_order(save_adapter: Save) -> None:
    base, first = save_adapter("llama", "first", target_modules=LM)
    _, second = save_adapter("llama", "second", target_modules=[*LM, "query"], use_dora=True)
    one, other = opened(base, first, second), opened(base, second, first)
    check(one)
    check(other)
    assert (logits(merged(one)) - logits(merged(other))).abs().max() > 1e-2
    assert one.name == f"{base.name}+first+second"


def save_with_tokens(base: Path, directory: Path, words: list[str], saved: list[str]) -> Path:
    """Trains an adapter, with the tables of embeddings in `saved`, on a vocabulary with `words`."""
    from peft import LoraConfig, get_peft_model

    bare = opened(base)
    tokenizer, model = bare.processor.tokenizer, load_model(bare)
    tokenizer.add_tokens(words)
    model.resize_token_embeddings(len(tokenizer))
    options = {"r": 2, "target_modules": LM, "modules_to_save": saved or None}
    change(get_peft_model(model, LoraConfig(**options))).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["llama", "t5", "opt"])
def test_an_adapter_of_one_component_alone_is_placed(
    random_checkpoint: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """As peft names it where only the language model, Q-Former or ViT was wrapped."""
    from peft import LoraConfig, get_peft_model

    base = random_checkpoint(kind)
    model = load_model(opened(base))
    targets = {
        "language_model": ["q" if kind == "t5" else "q_proj"],
        "qformer": ["query"],
        "vision_model": ["qkv"],
    }
    saved = {"language_model": ["lm_head"]}
    for part, modules in targets.items():
        config = LoraConfig(r=2, target_modules=modules, modules_to_save=saved.get(part))
        directory = tmp_path / part
        change(get_peft_model(getattr(model, part), config)).save_pretrained(directory)
    checkpoint = opened(base, *(tmp_path / part for part in targets))
    assert isinstance(checkpoint, Adapted)
    before = checkpoint.base.tensors
    changed = {name for name, t in checkpoint.tensors.items() if t is not before.get(name)}
    check(opened(base, tmp_path / "language_model"))
    assert {name.partition(".")[0] for name in changed} == targets.keys()


def test_added_tokens_come_with_their_embeddings(
    random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = random_checkpoint("llama")
    saved = ["embed_tokens", "lm_head"]
    save_with_tokens(base, tmp_path / "adapter", ["zebra"], saved)
    rows = len(opened(base).processor.tokenizer) + 1
    checkpoint = opened(base, tmp_path / "adapter")
    assert checkpoint.config.text_config.vocab_size == rows
    assert checkpoint.processor.tokenizer.convert_tokens_to_ids("zebra") == rows - 1
    check(checkpoint, "which zebra is red")
    ids = checkpoint.processor(text="zebra")["input_ids"][0]
    assert rows - 1 in ids
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert f"adapter-1/{name}" in checkpoint.digests()
    # Another that brings embeddings counts for itself.
    more = save_with_tokens(base, tmp_path / "more", ["lion", "okapi"], saved)
    check(opened(base, tmp_path / "adapter", more), "which lion is red")
    # Without embeddings of its own, a tokenizer must have the tokens that are there.
    lion = save_with_tokens(base, tmp_path / "lion", ["lion"], [])
    with pytest.raises(CheckpointError, match="has no 'zebra', or as another token"):
        opened(base, tmp_path / "adapter", lion)
    half = save_with_tokens(base, tmp_path / "half", ["lion"], saved[:1])
    with pytest.raises(CheckpointError, match=r"not all tables .* one number of rows"):
        opened(base, half)
    # Without the embeddings, the tokens mean nothing.
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if "lora_" in n}
    save_file(kept, file)
    with pytest.raises(CheckpointError, match=f"has {rows} tokens, and .* have {rows - 1} rows"):
        opened(base, tmp_path / "adapter")


MOVES = {
    "FSDP": (".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "a class inside of one with a head": (".language_model.model.", ".model.language_model."),
    "distributed training": ("base_model.model.", "base_model.model.module."),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_paths_of_other_versions_are_found(save_adapter: Save, move: tuple[str, str]) -> None:
    base, adapter = save_adapter("llama", target_modules=[*LM, "query"], rank_pattern={"query": 2})
    expected = {name: w.read().copy() for name, w in opened(base, adapter).tensors.items()}
    file = adapter / "adapter_model.safetensors"
    moved = {name.replace(*move, 1): tensor for name, tensor in load_file(file).items()}
    assert moved.keys() != load_file(file).keys()
    save_file(moved, file)
    checkpoint = opened(base, adapter)
    for name, weight in checkpoint.tensors.items():
        np.testing.assert_array_equal(weight.read(), expected[name])
    check(checkpoint)


def test_every_tensor_that_fits_nothing_is_listed_with_its_nearest(save_adapter: Save) -> None:
    base, adapter = save_adapter("llama", target_modules=LM)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = [n for n in tensors if n.endswith("layers.0.self_attn.q_proj.lora_A.weight")]
    tensors[name.replace("q_proj", "q_prox")] = tensors.pop(name)
    tensors["base_model.model.language_projektion.weight"] = torch.zeros(2)
    (name,) = [n for n in tensors if n.endswith("layers.1.self_attn.q_proj.lora_A.weight")]
    tensors[name] = torch.zeros(3, tensors[name].shape[1])
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        opened(base, adapter)
    message = str(caught.value)
    assert "self_attn.q_prox.lora_A.weight is for a module that no graph has (nearest" in message
    assert "language_projektion.weight is read by no graph (nearest: language_proj" in message
    assert "layers.0.self_attn.q_proj.weight lacks one of LoRA's two matrices" in message
    assert "q_proj.lora_A.weight has shape [3, 32], expected rank 4" in message
    assert message.endswith("answers would change: was the adapter trained on another model?")


def test_a_wrong_rank_alone_is_not_told_to_be_of_another_model(save_adapter: Save) -> None:
    base, adapter = save_adapter("llama", target_modules=LM)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(CheckpointError, match="expected rank 3") as caught:
        opened(base, adapter)
    assert "no graph" not in str(caught.value)
    assert str(caught.value).endswith("expected rank 3")


def test_a_head_that_was_tied_stays_when_embeddings_change(save_adapter: Save) -> None:
    base, adapter = save_adapter("opt", target_modules=["embed_tokens"])
    checkpoint = opened(base, adapter)
    table, head = (
        checkpoint.tensors[f"language_model.{name}.weight"]
        for name in ("model.decoder.embed_tokens", "lm_head")
    )
    own = opened(base).tensors["language_model.model.decoder.embed_tokens.weight"].read()
    np.testing.assert_array_equal(head.read(), own)
    assert (table.read() != own).any()


@pytest.mark.parametrize("target", ["shared", "embed_tokens"])
def test_embeddings_of_t5_are_refused(save_adapter: Save, target: str) -> None:
    base, adapter = save_adapter("t5", target_modules=["q", target])
    with pytest.raises(CheckpointError, match="two tables of T5's embeddings"):
        opened(base, adapter)


def test_a_dora_without_lengths_is_refused(save_adapter: Save) -> None:
    base, adapter = save_adapter("llama", target_modules=LM)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="has no lengths of DoRA, unlike its config"):
        opened(base, adapter)
