"""What a build is asked for, checked against machine, engine and checkpoint, and made definite."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from iblip.export.artifact.manifest import (
    IMAGES,
    MEANS_NOTHING,
    ServingLimits,
)
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import OptionError
from iblip.export.opening import checkpoint_from_source
from iblip.export.precision import of_language_model
from iblip.export.progress import Progress
from iblip.serving.builder.options import LLM_ENGINES, BuildOptions

if TYPE_CHECKING:
    from iblip.engines.selection import EngineChoice
logger = logging.getLogger(__name__)

STAYS_ON_CPU = (
    "the language model stays on the CPU: in float32 ONNX Runtime's CUDA provider has no attention"
    " over slots. --precision language_model=fp16 puts it on the GPU."
)
"""Said where ONNX Runtime runs the other components on a GPU."""


def prepared(
    options: BuildOptions, progress: Progress
) -> tuple[BuildOptions, Checkpoint, EngineChoice]:
    """Options, checkpoint and engine of a build, all of them checked before anything is written.

    Raises:
        OptionError: an option that does not fit this machine or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported.
    """
    from iblip.engines.selection import choose_engine
    from iblip.serving.builder.sizes import check_owners, longest_instruction, sizes_from_options
    from iblip.serving.repository.native import check_native

    engine = choose_engine(options.engine, options.targets)
    check_owners(options, engine.kind)
    progress.note(f"engine: {engine.kind}. {engine.reason}")
    _check_precisions(options, engine, progress)
    check_native(engine.kind, options.triton_backend, options.components)
    checkpoint = checkpoint_from_source(options.source, progress)
    progress.note(f"checkpoint: {checkpoint.directory} ({checkpoint.family.name})")
    if checkpoint.synthetic:
        progress.note(MEANS_NOTHING)
    model_type = checkpoint.config.text_config.model_type
    policy = of_language_model(options.components, model_type)
    if policy != options.components:
        options = replace(options, precision=",".join(f"{k}={v}" for k, v in policy.items()))
    limits = limits_from_options(options, checkpoint)
    options = replace(
        options,
        # The images of one request are one batch.
        max_batch=max(options.max_batch, limits.images),
        max_instruction=longest_instruction(options, engine.kind, checkpoint),
    )
    sizes_from_options(options)
    if options.vllm is not None:
        from iblip.engines.language_model.vllm.building import check_vllm

        check_vllm(checkpoint, options.components["language_model"], options.vllm)
    return options, checkpoint, engine


def _check_precisions(options: BuildOptions, engine: EngineChoice, progress: Progress) -> None:
    from iblip.engines.precision_support import check_precision
    from iblip.engines.selection import BESIDE, language_model_kind

    for component, word in options.components.items():
        llm = component == "language_model"
        kind = language_model_kind(options.llm_engine, engine.kind, word) if llm else engine.kind
        if llm and kind == "onnxruntime" and engine.kind in BESIDE:
            progress.note(STAYS_ON_CPU)
        targets = () if llm else options.targets
        quantisation = options.quantisations.get(component)
        if remark := check_precision(kind, component, word, quantisation, targets):
            progress.note(remark)


def limits_from_options(options: BuildOptions, checkpoint: Checkpoint) -> ServingLimits:
    """What the build takes on.

    Raises:
        OptionError: `max_length` is more than the model has, or has no room for prompt and answer;
            the family takes one image, or so many do not fit.
    """
    from iblip.export.checkpoint.facts import language_model_facts

    facts = language_model_facts(checkpoint)
    # The visual prompt, one token of prompt, one of answer.
    least, most = facts.num_query_tokens + 2, facts.max_length
    length = most if options.max_length is None else options.max_length
    if not least <= length <= most:
        raise OptionError(
            f"--max-length is {length}; this model's sequences have {least} to {most} positions, "
            f"{facts.num_query_tokens} of them for the picture"
        )
    slots = options.slots or LLM_ENGINES[options.llm_engine]
    return ServingLimits(
        slots=slots,
        max_length=length,
        queue=options.queue,
        images=_images(options, checkpoint, (length - 2) // facts.num_query_tokens),
        max_batch=options.max_batch,
        max_instruction=options.max_instruction,
    )


def _images(options: BuildOptions, checkpoint: Checkpoint, room: int) -> int:
    """Most images of a request; `room` is for how many there are positions."""
    family, wanted = checkpoint.family, options.max_images
    most = 1 if family.images == "one" else room
    if wanted is None:
        return min(most, IMAGES)
    if wanted > most:
        raise OptionError(
            f"--max-images is {wanted}; wanted 1, as {family.name} takes one image a request"
            if family.images == "one"
            else f"--max-images is {wanted}; wanted at most {most}: with one token of prompt and "
            "one of answer, more images do not fit into the positions of a sequence"
        )
    return wanted
