"""Translates LAVIS's and MiniGPT-4's names of tensors to transformers', and back.

Tables are read in both directions: a checkpoint's tensors are renamed to transformers' names, and a
missing tensor is reported by its name in the file. `{}` stands for the number of a layer.

Sources: salesforce/LAVIS, lavis/models/eva_vit.py and lavis/models/blip2_models/Qformer.py;
Vision-CAIR/MiniGPT-4, minigpt4/models/minigpt4.py, which has the same modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Names = Sequence[tuple[str, str]]
"""Pairs of prefixes, the original's and transformers'; the first that matches counts."""

BLOCK, LAYER = "blocks.{}.", "vision_model.encoder.layers.{}."
EMBEDDINGS = "vision_model.embeddings."

VIT: Names = (
    ("cls_token", f"{EMBEDDINGS}class_embedding"),
    ("pos_embed", f"{EMBEDDINGS}position_embedding"),
    ("patch_embed.proj.", f"{EMBEDDINGS}patch_embedding."),
    (f"{BLOCK}norm1.", f"{LAYER}layer_norm1."),
    (f"{BLOCK}norm2.", f"{LAYER}layer_norm2."),
    (f"{BLOCK}attn.proj.", f"{LAYER}self_attn.projection."),
    (f"{BLOCK}attn.", f"{LAYER}self_attn."),
    (f"{BLOCK}mlp.", f"{LAYER}mlp."),
)
"""Names in the ViT's own file."""

QFORMER: Names = (
    ("query_tokens", "query_tokens"),
    (
        "Qformer.bert.encoder.layer.{}.attention.self.",
        "qformer.encoder.layer.{}.attention.attention.",
    ),
    (
        "Qformer.bert.encoder.layer.{}.crossattention.self.",
        "qformer.encoder.layer.{}.crossattention.attention.",
    ),
    ("Qformer.bert.", "qformer."),
)
"""Names of a Q-Former, except for the LayerNorm of its embeddings."""

LAYER_NORM: Mapping[str, str] = {
    "instruction_qformer": "qformer.embeddings.layernorm.",
    "qformer": "qformer.layernorm.",
}
"""transformers' name of the LayerNorm of a Q-Former's embeddings, by projector."""

LANGUAGE_MODEL: Mapping[str, Names] = {
    "llama": (("", "language_model."),),
    "t5": (("", "language_model."),),
    # As `OPTModel` names them, and as `OPTForCausalLM` does.
    "opt": (("decoder.", "language_model.model.decoder."), ("", "language_model.")),
}
"""Names in the language model's own directory, by its `model_type`."""

PREFIXES: Mapping[str, tuple[str, str]] = {
    "llama": ("llm_proj.", "llm_model."),
    "t5": ("t5_proj.", "t5_model."),
    "opt": ("opt_proj.", "opt_model."),
}
"""LAVIS's prefixes of the projection and of the language model, by `model_type`."""

MINIGPT4_PREFIXES = "llama_proj.", "llama_model."
"""The same in MiniGPT-4."""


def whole(projector: str, projection: str, language_model: str) -> Names:
    """Returns the names of a checkpoint that may hold every part.

    Args:
        projector: as `export.families.family.Projector`.
        projection, language_model: a pair of `PREFIXES`.
    """
    norm = LAYER_NORM.get(projector, "qformer.layernorm.")
    return (
        *((f"visual_encoder.{original}", name) for original, name in VIT),
        ("ln_vision.", "vision_model.post_layernorm."),
        ("Qformer.bert.embeddings.LayerNorm.", norm),
        *QFORMER,
        (projection, "language_projection."),
        (language_model, "language_model."),
    )


@dataclass(frozen=True, kw_only=True)
class Unused:
    """Tensors that the original does not read either.

    Attributes:
        pattern: a regular expression that the whole of a name matches.
        reason: why they are not needed.
    """

    pattern: str
    reason: str


# What training leaves in a file beside what it has trained. LAVIS's runner (`runner_base.py`,
# `_save_checkpoint`) and MiniGPT-4's, which does the same, save the `state_dict` without the
# parameters that need no gradient. They find those by `named_parameters()`, which has neither
# buffers nor the further names of a tied tensor, so these remain:
#
#   tensors                                     of                          known here by
#   …encoder.embed_tokens.weight, …decoder.…    T5, tied to `shared`        `tied_weights`
#   …lm_head.weight                             OPT, tied to embed_tokens   `tied_weights`
#   …rotary_emb.inv_freq, …position_ids         LLaMA, the Q-Former         `fit.HARMLESS`
#   …SCB, …weight_format                        MiniGPT-4's LLaMA, 8 bits   `EIGHT_BITS`
#   Qformer.cls.…, itm_head.…, …_proj.…, temp   BLIP-2's first stage        `HEADS`
#   the Q-Former's text branch                  the same                    `TEXT_BRANCH`
#   t5_proj.…, what remains of t5_model.…       BLIP-2's file in MiniGPT-4  `OTHER_LANGUAGE_MODEL`
#
# The originals load with `strict=False`, and so ignore all of them.

HEADS = (
    Unused(pattern=r"Qformer\.cls\..*", reason="writes text in the first stage of training"),
    Unused(pattern=r"temp|itm_head\..*|(vision|text)_proj\..*", reason="the first stage's losses"),
)
TEXT_BRANCH = (
    Unused(
        pattern=r"Qformer\.bert\.embeddings\.(word|position)_embeddings\..*",
        reason="of text, which this Q-Former does not read",
    ),
    Unused(
        pattern=r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*",
        reason="of text, which this Q-Former does not read",
    ),
)
OTHER_LANGUAGE_MODEL = Unused(
    pattern=r"(llm|opt|t5)_(proj|model)\..*",
    reason="of BLIP-2's own language model, which MiniGPT-4 replaces",
)
EIGHT_BITS = Unused(
    pattern=r"llama_model\..*\.(SCB|weight_format)",
    reason="scales of a frozen language model that was loaded in 8 bits (`low_resource`)",
)
CLASSIFIER = Unused(pattern=r"(norm|fc_norm|head)\..*", reason="of classes: LAVIS cuts it off")
PRETRAINING = Unused(
    pattern=r"mask_token|logit_scale|(lm_head|text|rel_pos_bias)\..*",
    reason="of EVA's own training: LAVIS's ViT has no such part",
)


def last_blocks(layers: int) -> Unused:
    """The ViT's blocks behind the first `layers`: EVA's file has 40, LAVIS runs 39."""
    kept = "|".join(str(i) for i in range(layers))
    return Unused(pattern=rf"blocks\.(?!({kept})\.)\d+\..*", reason="LAVIS stops one block earlier")


def to_transformers(name: str, names: Names) -> str | None:
    """Returns transformers' name for `name`; `None` if no row of the table matches."""
    return _replace_prefix(name, ((original, ours) for original, ours in names))


def to_original(name: str, names: Names) -> str:
    """Returns the file's name for transformers' `name`; the same if no row matches."""
    if name.endswith("self_attn.qkv.bias"):  # made of two
        stem = to_original(f"{name.removesuffix('qkv.bias')}q_bias", names)
        return f"{stem} (and v_bias)"
    return _replace_prefix(name, ((ours, theirs) for theirs, ours in names)) or name


def _replace_prefix(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    return None
