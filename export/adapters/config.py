"""`LoraConfig`: what `adapter_config.json` says of a LoRA, or why it is refused.

Source: huggingface/peft, `src/peft/tuners/lora/config.py` and `model.py` (`_create_and_replace`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from iblip.export.checkpoint.directory import ADAPTER_CONFIG, object_from_json
from iblip.export.errors import CheckpointError
from iblip.export.messages import shown

KIND = "LORA"

MERGE = (
    "Merge it once, with peft: load the model with its adapter,"
    " `model.merge_and_unload().save_pretrained(NEW)`, and give --model NEW."
)
"""What to do with an adapter that is refused."""

READ = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "init_lora_weights",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "revision",
        "target_parameters",
        "use_dora",
        "use_rslora",
    }
)
"""Keys that are read."""

IGNORED = frozenset(
    {
        "bias",  # these say which tensors the adapter has, and its file says so itself
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "target_modules",
        "corda_config",  # these say how it was trained or initialised: see `INITS`
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "peft_version",
        "runtime_config",
        "task_type",
        "fan_in_fan_out",  # peft itself resets it for every kind of layer that these models have
    }
)
"""Keys that change nothing in a trained adapter."""

DEFAULTS: Mapping[str, Any] = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Defaults of other keys, where they are something. peft adds keys with each release."""

INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the model itself as it was. The others (`pissa`,
`olora`, `corda`, `loftq`, `lora_ga`) change its weights before training starts, which the adapter's
file does not have."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A LoRA's config.

    Attributes:
        r: rank.
        lora_alpha: scale of the product, times the rank.
        use_rslora: whether the scale is divided by the rank's root instead (arXiv 2312.03732).
        use_dora: whether each module has lengths of its outputs, too (arXiv 2402.09353).
        rank_pattern, alpha_pattern: ranks and alphas of single modules, by regular expressions.
        modules_to_save: ends of the names of modules that were trained whole.
        target_parameters: ends of the names of parameters that LoRA was trained on without their
            module.
        base: name or path of the model that it was trained on; `None` if it does not say.
        revision: of that model on the hub.
        architecture: transformers' class of that model; `None` if it does not say.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    base: str | None = None
    revision: str | None = None
    architecture: str | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads `adapter_config.json` in `directory`.

        Raises:
            CheckpointError: it is missing, is not of a LoRA, or has a key with a value that would
                change the model in a way that is not known here.
        """
        path = directory / ADAPTER_CONFIG
        if not path.exists():
            inside = sorted(file.parent for file in directory.glob(f"*/{ADAPTER_CONFIG}"))
            raise CheckpointError(
                f"{path} is missing: {directory} is not an adapter. Give --adapter a directory that"
                " peft's `save_pretrained` wrote"
                + (f", such as {', '.join(map(str, inside))}." if inside else ".")
            )
        data = object_from_json(path)
        _check(path, data)
        mapping, base = data.get("auto_mapping") or {}, data.get("base_model_name_or_path")
        try:
            return cls(
                r=_number(data, "r", 8),
                lora_alpha=_factor(data, "lora_alpha", 8),
                use_rslora=bool(data.get("use_rslora")),
                use_dora=bool(data.get("use_dora")),
                rank_pattern=_numbers(data, "rank_pattern", _number),
                alpha_pattern=_numbers(data, "alpha_pattern", _factor),
                modules_to_save=_words(data, "modules_to_save"),
                target_parameters=_words(data, "target_parameters"),
                base=base if isinstance(base, str) and base else None,
                revision=data.get("revision") if isinstance(data.get("revision"), str) else None,
                architecture=mapping.get("base_model_class") if isinstance(mapping, dict) else None,
            )
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def rank(self, module: str) -> int:
        """The rank of a module, by its name in the model that was trained."""
        return self.rank_pattern.get(_first_match(self.rank_pattern, module), self.r)

    def alpha(self, module: str) -> float:
        """The alpha of a module, by its name in the model that was trained."""
        return self.alpha_pattern.get(_first_match(self.alpha_pattern, module), self.lora_alpha)

    def scale(self, module: str) -> float:
        """What the product of a module's matrices is multiplied by."""
        rank, alpha = self.rank(module), self.alpha(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether a module was trained whole, as a copy of its own."""
        return any(module.endswith(end) for end in self.modules_to_save)

    def targets(self, parameter: str) -> bool:
        """Whether LoRA was trained on a parameter without its module."""
        return any(f".{parameter}".endswith(f".{target}") for target in self.target_parameters)


def _check(path: Path, data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind != KIND:
        raise CheckpointError(
            f"{path} is of an adapter of kind {shown(kind)}; only {KIND} is merged here. {MERGE}"
            " Prompt and prefix tuning add tokens, and cannot be merged at all."
        )
    init = data.get("init_lora_weights", True)
    if init not in INITS:
        raise CheckpointError(
            f"{path} has init_lora_weights {shown(init)}, which changes the model's own weights"
            f" before it is trained; its file holds only the adapter. {MERGE}"
        )
    for key, value in data.items():
        if key in READ or key in IGNORED or not value or value == DEFAULTS.get(key):
            continue
        raise CheckpointError(
            f"{path} has {shown(key)}: {shown(value)}, which is not supported: answers would be"
            f" others. {MERGE}"
        )


def _first_match(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that the end of a module's name matches; else the name itself."""
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module


def _number(data: Mapping[str, Any], key: str, default: int) -> Any:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {shown(value)}; expected a number above 0")
    return value


def _factor(data: Mapping[str, Any], key: str, default: int) -> Any:
    """An alpha, which may be 0 or below: the adapter then changes nothing, or the opposite."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {shown(value)}; expected a number")
    return value


def _numbers(data: Mapping[str, Any], key: str, read: Callable[..., Any]) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {shown(value)}; expected numbers by patterns")
    for pattern in value:
        read(value, pattern, 1)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{key} has {shown(pattern)}, which is no pattern: {error}") from error
    return value


def _words(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key) or ()
    words = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{key} is {shown(value)}; expected names")
    return words
