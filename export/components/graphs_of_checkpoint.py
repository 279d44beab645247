"""Lists the graphs of a checkpoint. A language model is one row here; a family is one in
`export.families`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.facts import image_processor_settings
from iblip.export.components.component import Component
from iblip.export.components.gpt_neox import gpt_neox
from iblip.export.components.llama import llama
from iblip.export.components.opt import opt
from iblip.export.components.qformer import qformer
from iblip.export.components.t5 import t5
from iblip.export.components.vision_encoder import vision_encoder
from iblip.export.errors import CheckpointError
from iblip.export.precision import PrecisionPolicy

LANGUAGE_MODELS: Mapping[str, Callable[..., tuple[Component, ...]]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "opt": opt,
    "gpt_neox": gpt_neox,
    "t5": t5,
    "mt5": t5,
}
"""Functions that return a language model's graphs, by the text config's `model_type`."""


def components_from_checkpoint(
    checkpoint: Checkpoint, policy: PrecisionPolicy
) -> tuple[Component, ...]:
    """Returns every graph of `checkpoint`, in the order in which data flows through them.

    Args:
        checkpoint: what is exported.
        policy: the precision of every component.

    Raises:
        CheckpointError: the language model is not in `LANGUAGE_MODELS`, or is of a form that cannot
            be exported.
    """
    config = checkpoint.config
    architecture = config.text_config.model_type
    if architecture not in LANGUAGE_MODELS:
        raise CheckpointError(
            f"{checkpoint.config_file} has a language model of type {architecture!r};"
            f" supported: {', '.join(LANGUAGE_MODELS)}"
        )
    language = LANGUAGE_MODELS[architecture]
    policy = policy.resolve(architecture)
    vision = policy.vision_encoder
    return (
        vision_encoder(config, image_processor_settings(checkpoint), precision=vision),
        qformer(
            config,
            projector=checkpoint.projector,
            precision=policy.qformer,
            input_precision=vision,
        ),
        *language(config, precision=policy.language_model),
    )
