"""LoRA inside an original's own file: found by name, and merged into the weights that it changes.

Forks of LAVIS train LoRA on the language model with peft (`….q_proj.lora_A.default.weight`) and on
the Q-Former with a linear layer of their own (`….query.lora_A`), and save both in one `.pth`. The
wrapper that peft puts around a model is in all its names (`llm_model.base_model.model.…`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iblip.export.checkpoint.torch_files import saved_config
from iblip.export.errors import CheckpointError
from iblip.export.messages import SHOWN, listed, nearest
from iblip.export.weights.merging import merge_low_rank
from iblip.export.weights.weight import Weight

COMPONENTS: Mapping[str, str] = {
    "vision_model.": "vision_encoder",
    "qformer.": "qformer",
    "language_projection.": "qformer",
    "language_model.": "language_model",
}
"""Beginnings of transformers' names, and the component that a user calls them by."""

_PART = re.compile(r"(.+)\.(lora_[AB])(?P<peft>(?:\.[\w-]+)?\.weight)?")

_WRAPPERS = re.compile(
    r"(^|\.)base_model\.model\.|\.base_layer(?=\.)|\.modules_to_save\.\w+(?=\.)"
    r"|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What peft, `torch.compile`, FSDP and activation checkpointing put into the names of the model
that they wrap, around any of its modules."""

_UNUSED = ".original_module."
"""In names of what peft keeps of a module beside the copy that was trained, and does not run."""


@dataclass
class Low:
    """LoRA's matrices of one module.

    Attributes:
        name: of the module in its file.
        peft: whether peft named them.
        part: of the file, for messages.
        alpha: that the file says; `None` if it says none.
        parts: the matrices, `lora_A` and `lora_B`.
    """

    name: str
    peft: bool
    part: str
    alpha: float | None = None
    parts: dict[str, Weight] = field(default_factory=dict)


def without_wrappers(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """Returns the tensors by the names that they have without peft and other wrappers.

    Raises:
        CheckpointError: two have the same name then.
    """
    bare: dict[str, Weight] = {}
    for name, tensor in tensors.items():
        own = _WRAPPERS.sub(lambda match: match[1] or "", name)
        if _UNUSED in name:
            continue
        if own in bare:
            raise CheckpointError(f"{name} is one of two tensors of the file that are {own}")
        bare[own] = tensor
    return bare


def split_lora(
    part: str, tensors: Mapping[str, Weight]
) -> tuple[dict[str, Weight], dict[str, Low]]:
    """Takes LoRA's matrices out of the tensors of a file.

    Args:
        part: of the file, for messages.
        tensors: by the file's own names, without wrappers.

    Returns:
        The other tensors, and LoRA's by the name of the weight that they change.

    Raises:
        CheckpointError: half of a pair is missing; a tensor is of another kind of adapter; or it
            cannot be told whether a weight of the file has its LoRA in it already.
    """
    rest: dict[str, Weight] = {}
    low: dict[str, Low] = {}
    for name, tensor in tensors.items():
        if "lora_" not in name:
            rest[name] = tensor
        elif match := _PART.fullmatch(name):
            weight = f"{match[1]}.weight"
            peft = match["peft"] is not None
            one = low.setdefault(weight, Low(name=match[1], peft=peft, part=part))
            if match[2] in one.parts:
                raise CheckpointError(
                    f"--part {part} has {name} and another {match[2]} of the same layer, so of"
                    " several adapters, and does not say which of them was active. Save the model"
                    " with that one alone."
                )
            one.parts[match[2]] = tensor
        else:
            raise CheckpointError(
                f"--part {part} has {name}, which is of a kind of adapter that is not merged here."
                " Merge it with the code that it was trained with, and save the whole model."
            )
    for weight, one in low.items():
        if missing := {"lora_A", "lora_B"} - one.parts.keys():
            raise CheckpointError(f"--part {part}: {one.name} has no {missing.pop()}")
        if weight in rest and not one.peft:
            raise CheckpointError(
                f"--part {part} has {weight} beside its lora_A and lora_B. Such a layer adds the"
                " product to its weight where the model is evaluated, and takes it off again to"
                " train, so the file does not say which of the two this is. Save the model without"
                " that weight, or without the lora_ tensors if they are in it."
            )
    return rest, low


def merge_lora(
    low: Mapping[str, Low],
    tensors: dict[str, Weight],
    alphas: Mapping[str, float],
) -> None:
    """Merges LoRA's matrices into `tensors`, in place.

    Args:
        low: by transformers' name of the weight.
        tensors: by transformers' names.
        alphas: LoRA's alpha by component (`vision_encoder`, `qformer`, `language_model`), or by the
            empty word for all others; they take precedence over the files' own.

    Raises:
        CheckpointError: no part has a weight that LoRA changes, the shapes do not fit, or an alpha
            is not known.
    """
    unknown = [name for name in low if name not in tensors]
    if unknown:
        lines = [f"{low[name].name}{nearest(name, tensors)}" for name in unknown[:SHOWN]]
        raise CheckpointError(
            f"--part {low[unknown[0]].part} has LoRA for weights that no part has:\n  "
            + listed(lines, len(unknown))
        )
    for name, one in low.items():
        rank = one.parts["lora_A"].shape[0]
        alpha = one.alpha if (given := alpha_of(name, alphas)) is None else given
        if alpha is None:
            raise CheckpointError(
                f"--part {one.part} has LoRA of rank {rank} on {one.name}, and does not say its"
                " alpha. Give that of the training with --lora-alpha ALPHA, or by component, such"
                " as --lora-alpha qformer=16."
            )
        tensors[name] = merge_low_rank(
            tensors[name], up=one.parts["lora_B"], down=one.parts["lora_A"], scale=alpha / rank
        )


def alpha_of(name: str, alphas: Mapping[str, float]) -> float | None:
    """The alpha for transformers' `name` of a weight; `None` if none is given."""
    component = next((word for start, word in COMPONENTS.items() if name.startswith(start)), "")
    return alphas.get(component, alphas.get(""))


def alpha_of_training(file: Path) -> float | None:
    """The alpha in the config that a training run saved with its weights; `None` if it has none.

    MiniGPT-4's runner saves the config of its model, with `lora_alpha`.
    """
    model = saved_config(file).get("model")
    alpha = model.get("lora_alpha") if isinstance(model, Mapping) else None
    return float(alpha) if isinstance(alpha, int | float) and alpha > 0 else None
