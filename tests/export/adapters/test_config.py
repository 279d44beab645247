"""What `adapter_config.json` may say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from iblip.export.adapters.config import LoraConfig
from iblip.export.adapters.names import find_name, part_from_name
from iblip.export.errors import CheckpointError


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads what peft writes for a LoRA, with changes."""
    from peft import LoraConfig as PeftConfig

    def read(**changes: Any) -> LoraConfig:
        PeftConfig(r=4, lora_alpha=6, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return LoraConfig.read(tmp_path)

    return read


def test_what_peft_writes_by_default_is_read(read: Any) -> None:
    config = read(base_model_name_or_path="acme/tiny", revision="v1", key_of_a_later_release=None)
    assert (config.r, config.lora_alpha, config.base, config.revision) == (4, 6, "acme/tiny", "v1")
    assert config.scale("language_model.model.layers.0.self_attn.q_proj") == 1.5


@pytest.mark.parametrize("kind", ["IA3", "PROMPT_TUNING", "PREFIX_TUNING", "ADALORA", "NEW", None])
def test_other_kinds_are_refused_by_name(read: Any, kind: str | None) -> None:
    with pytest.raises(CheckpointError, match=rf"of an adapter of kind {kind!r}; only LORA"):
        read(peft_type=kind)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_what_changes_the_model_before_training_is_refused(read: Any, init: str) -> None:
    with pytest.raises(CheckpointError, match=f"init_lora_weights '{init}', which changes the mod"):
        read(init_lora_weights=init)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 4], [2, 5]]),
        ("trainable_token_indices", [3]),
        ("use_qalora", True),
        ("megatron_core", "another.core"),
        ("key_of_a_later_release", {"on": True}),
    ],
)
def test_keys_that_would_change_answers_are_refused_by_name(
    read: Any, key: str, value: Any
) -> None:
    with pytest.raises(CheckpointError, match=f"has '{key}': .* not supported: answers would be"):
        read(**{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.3, "inference_mode": False, "task_type": "CAUSAL_LM"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"key_of_a_later_release": False},
        {"target_modules": ".*", "exclude_modules": ["lm_head"], "layers_to_transform": [1]},
    ],
)
def test_keys_that_change_nothing_are_ignored(read: Any, changes: Any) -> None:
    assert read(**changes).r == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r is 0; expected a number above 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
        ({"lora_alpha": float("inf")}, "expected a number|is not valid JSON"),
        ({"rank_pattern": {"q(": 3}}, r"rank_pattern has 'q\(', which is no pattern"),
        ({"alpha_pattern": [3]}, r"alpha_pattern is \[3\]; expected numbers by patterns"),
        ({"modules_to_save": [3]}, r"modules_to_save is \[3\]; expected names"),
    ],
)
def test_values_that_are_none_are_refused(read: Any, changes: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(**changes)


def test_an_alpha_may_be_zero_or_below(read: Any) -> None:
    config = read(lora_alpha=0, alpha_pattern={"q_proj": -8})
    assert (config.scale("x.v_proj"), config.scale("x.q_proj")) == (0, -2)


def test_the_first_pattern_that_matches_the_end_counts(read: Any) -> None:
    config = read(
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 16},
        alpha_pattern={"q_proj": 32},
        use_rslora=True,
    )
    first, second = (f"language_model.model.layers.{n}.self_attn.q_proj" for n in (0, 1))
    assert (config.rank(first), config.rank(second), config.rank("x.v_proj")) == (16, 2, 4)
    assert config.scale(first) == 32 / math.sqrt(16)
    assert config.scale("x.v_proj") == 6 / math.sqrt(4)


@pytest.mark.parametrize(
    ("name", "module", "kind", "is_whole"),
    [
        ("base_model.model.a.q.lora_A.weight", "a.q", "lora_A", False),
        ("base_model.model.a.q.lora_B.default.weight", "a.q", "lora_B", False),
        ("base_model.model.a.q.lora_B.bias", "a.q", "lora_B.bias", False),
        ("base_model.model.a.e.lora_embedding_A", "a.e", "lora_embedding_A", False),
        ("base_model.model.a.q.lora_magnitude_vector", "a.q", "lora_magnitude_vector", False),
        ("base_model.model._orig_mod.module.a.q.bias", "a.q", "bias", True),
        ("base_model.model.a._fsdp_wrapped_module.q.lora_A.weight", "a.q", "lora_A", False),
        ("base_model.model._checkpoint_wrapped_module.a._orig_mod.q.bias", "a.q", "bias", True),
        ("base_model.model.a.q.base_layer.bias", "a.q", "bias", True),
        ("base_model.model.h.modules_to_save.default.dense.weight", "h.dense", "weight", True),
    ],
)
def test_names_of_tensors(name: str, module: str, kind: str, is_whole: bool) -> None:
    part = part_from_name(name)
    assert (part.module, part.kind, part.is_whole) == (module, kind, is_whole)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.language_model.layers.0.mlp", "language_model.model.layers.0.mlp"),
        ("language_model.model.layers.0.mlp", "language_model.model.layers.0.mlp"),
        ("model.vision_model.encoder", "vision_model.encoder"),
        ("model.qformer.encoder", "qformer.encoder"),
        ("lm_head", "language_model.lm_head"),
        ("model.language_projection", "language_projection"),
        ("model.layers.0.mlp", "language_model.model.layers.0.mlp"),
        ("language_model.model.layers.9.mlp", None),
    ],
)
def test_modules_by_the_paths_of_several_versions(name: str, found: str | None) -> None:
    known = {
        "language_model.model.layers.0.mlp",
        "language_model.lm_head",
        "vision_model.encoder",
        "qformer.encoder",
        "language_projection",
    }
    assert find_name(name, known) == found
