"""From what a build is asked for to what it is: checked against machine, engine and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from iblip.engines.memory import MemoryPlan
from iblip.export.artifact.directory import check_replaceable
from iblip.export.artifact.manifest import (
    BATCH,
    IMAGES,
    LANGUAGE_MODEL,
    MEANS_NOTHING,
    LanguageModelFacts,
    ServingLimits,
)
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import OptionError
from iblip.export.examples import EXAMPLES, check_examples
from iblip.export.opening import check_source, checkpoint_from_source
from iblip.export.precision import COMPONENTS, PrecisionPolicy
from iblip.export.progress import Progress
from iblip.export.quantisation.options import Quantisation, quantisations
from iblip.export.system.installing import check_peft
from iblip.serving.builder.options import LLM_ENGINES, BuildOptions, LimitOptions
from iblip.serving.builder.settled import SettledBuild

if TYPE_CHECKING:
    from iblip.engines.language_model.vllm.settings import VllmSettings

STAYS_ON_CPU = (
    "the language model stays on the CPU: in float32 ONNX Runtime's CUDA provider has no attention"
    " over slots. --precision language_model=fp16 (or bf16, int8, int4) puts it on the GPU."
)
"""Said where ONNX Runtime runs the other components on a GPU."""


def settle(options: BuildOptions, progress: Progress) -> SettledBuild:
    """Decides everything that a build is, before anything is written, downloaded or traced.

    Of a model of the hub only configs and headers are read: `with_weights` downloads the rest.

    Args:
        options: what is asked for.
        progress: told what is chosen, and of a download.

    Raises:
        OptionError: an option that does not fit this machine, its GPU or the others.
        CheckpointError: the checkpoint is missing, truncated or not supported.
        InputError: the examples that it is to be compared or measured on cannot be used.
        BuildDirectoryError: the destination may not be replaced.
    """
    from iblip.engines.selection import choose_engine
    from iblip.export.checkpoint.facts import language_model_facts
    from iblip.serving.builder.gpu_memory import plan_of_options
    from iblip.serving.builder.sizes import check_owners, profile_options
    from iblip.serving.repository.native import backend_for, check_native, remark_on_native

    destination = options.destination.absolute()
    check_source(options.source)
    check_replaceable(destination)
    if options.verification is not None and options.verification.examples is not None:
        check_examples(options.verification.examples, options.verification.limit)
    engine = choose_engine(
        options.engines.engine,
        options.plans.targets,
        options.policy.to_json(),
        options.engines.llm_engine,
    )
    check_owners(options, engine.kind)
    progress.note(f"engine: {engine.kind}. {engine.reason}")
    quantised = quantisations(options.policy, options.quantisation)
    engines = _choose_engines(options, engine.kind, quantised)
    _check_precisions(options, engines, quantised, progress)
    backend = backend_for(engine.kind, options.engines.triton_backend)
    check_native(engine.kind, backend, options.policy)
    if remark := remark_on_native(engine.kind, backend):
        progress.note(remark)
    if options.verification is not None and options.source.adapters:
        check_peft()
    checkpoint = checkpoint_from_source(options.source, progress, weights=False)
    _check_questions(options, checkpoint, quantised)
    progress.note(f"checkpoint: {checkpoint.directory} ({checkpoint.family.name})")
    if checkpoint.synthetic:
        progress.note(MEANS_NOTHING)
    policy = _resolve_policy(options, engines[LANGUAGE_MODEL], checkpoint, progress)
    vllm = _settle_vllm(options, checkpoint, policy.language_model)
    facts = language_model_facts(checkpoint)
    _check_length(options.limits, facts)
    memory = plan_of_options(options, checkpoint, policy, quantised, engines, facts, progress)
    limits = _settle_limits(options, engine.kind, checkpoint, facts, memory)
    return SettledBuild(
        destination=destination,
        source=checkpoint.source or options.source,
        checkpoint=checkpoint,
        policy=policy,
        quantisations=quantised,
        engines=engines,
        backend=backend,
        plans=options.plans,
        sizes=profile_options(options.sizes, limits.max_batch, limits.max_instruction),
        limits=limits,
        memory=memory,
        vllm=vllm,
        caches=options.caches,
        verification=options.verification,
    )


def with_weights(settled: SettledBuild, progress: Progress) -> SettledBuild:
    """The same build, once the weights of its checkpoint are on this machine.

    Raises:
        CheckpointError: they cannot be downloaded.
    """
    if all(path.exists() for path in settled.checkpoint.files):
        return settled
    return replace(settled, checkpoint=checkpoint_from_source(settled.source, progress))


def _check_questions(
    options: BuildOptions, checkpoint: Checkpoint, quantised: Mapping[str, Quantisation]
) -> None:
    """Refuses examples and images that the build would need hours later."""
    from iblip.export.quantisation.calibration import check_samples

    check_samples(checkpoint, quantised)
    own = checkpoint.directory / "examples"
    asked = options.verification
    if asked is not None and asked.examples is None and (own / EXAMPLES).exists():
        check_examples(own, asked.limit)


def _resolve_policy(
    options: BuildOptions, kind: str, checkpoint: Checkpoint, progress: Progress
) -> PrecisionPolicy:
    """The precision of each component: `lavis` known, and 16 bits around small weights on a GPU."""
    from iblip.engines.kinds import runs_on_gpu

    model_type = checkpoint.config.text_config.model_type
    policy = options.policy.resolve(model_type)
    if not runs_on_gpu(kind):
        return policy
    halves = policy.in_halves(model_type)
    if halves != policy:
        progress.note(
            f"language_model={policy.language_model} is {halves.language_model} on {kind}: its"
            " weights are the same, and all else computes in 16 bits"
        )
    return halves


def _choose_engines(
    options: BuildOptions, kind: str, quantised: Mapping[str, Quantisation]
) -> dict[str, str]:
    """The kind of each component's engine, where the others' is `kind`."""
    from iblip.engines.selection import language_model_kind

    word = options.policy.language_model
    llm = language_model_kind(options.engines.llm_engine, kind, word, quantised.get(LANGUAGE_MODEL))
    return dict.fromkeys(COMPONENTS, kind) | {LANGUAGE_MODEL: llm}


def _check_precisions(
    options: BuildOptions,
    engines: Mapping[str, str],
    quantised: Mapping[str, Quantisation],
    progress: Progress,
) -> None:
    """Refuses what an engine cannot run, and notes what there is to say of the others."""
    from iblip.engines.kinds import OPENVINO, openvino_obstacle
    from iblip.engines.precision_support import check_precision, remark_on_precision
    from iblip.engines.selection import BESIDE

    if engines[LANGUAGE_MODEL] == OPENVINO and (obstacle := openvino_obstacle()):
        raise OptionError(f"--llm-engine {OPENVINO} is not possible here: {obstacle}")
    policy = options.policy
    for component, kind in engines.items():
        llm = component == LANGUAGE_MODEL
        if llm and kind == "onnxruntime" and engines["vision_encoder"] in BESIDE:
            progress.note(STAYS_ON_CPU)
        word, quantisation = policy.word(component), quantised.get(component)
        check_precision(kind, component, word, quantisation, () if llm else options.plans.targets)
        if remark := remark_on_precision(kind, component, word, quantisation):
            progress.note(remark)


def _check_length(asked: LimitOptions, facts: LanguageModelFacts) -> None:
    """Refuses more positions than the model has, and fewer than a prompt and an answer want."""
    # The visual prompt, one token of prompt, one of answer.
    least, most = facts.num_query_tokens + 2, facts.most_positions
    if asked.max_length is not None and not least <= asked.max_length <= most:
        raise OptionError(
            f"--max-length is {asked.max_length}; this model's sequences have {least} to {most}"
            f" positions, {facts.num_query_tokens} of them for the image"
        )


def _settle_limits(
    options: BuildOptions,
    kind: str,
    checkpoint: Checkpoint,
    facts: LanguageModelFacts,
    memory: MemoryPlan | None,
) -> ServingLimits:
    """What the build takes on; slots and positions are those of the GPU's plan, if there is one.

    Raises:
        OptionError: the family takes one image, or so many do not fit.
    """
    from iblip.serving.builder.sizes import longest_instruction

    asked = options.limits
    slots = asked.slots or LLM_ENGINES[options.engines.llm_engine]
    length = asked.max_length or facts.max_length
    if memory is not None:
        slots, length = memory.slots, memory.positions
    room = (length - 2) // facts.num_query_tokens
    images = _settle_images(asked.max_images, checkpoint, room)
    return ServingLimits(
        slots=slots,
        max_length=length,
        queue=asked.queue,
        images=images,
        # The images of one request are one batch.
        max_batch=max(options.sizes.max_batch or BATCH, images),
        max_instruction=longest_instruction(options.sizes.max_instruction, kind, checkpoint),
        max_prompt_bytes=asked.max_prompt_bytes,
        max_option_bytes=asked.max_option_bytes,
        max_logprobs=asked.max_logprobs,
        prefix_cache=asked.prefix_cache,
    )


def _settle_images(asked: int | None, checkpoint: Checkpoint, room: int) -> int:
    """Most images of a request; `room` is for how many there are positions."""
    family = checkpoint.family
    most = 1 if family.images == "one" else room
    if asked is None:
        return min(most, IMAGES)
    if asked > most:
        raise OptionError(
            f"--max-images is {asked}; expected 1, as {family.name} takes one image a request"
            if family.images == "one"
            else f"--max-images is {asked}; expected at most {most}: with one token of prompt and "
            "one of answer, more images do not fit into the positions of a sequence"
        )
    return asked


def _settle_vllm(options: BuildOptions, checkpoint: Checkpoint, word: str) -> VllmSettings | None:
    """How vLLM runs the language model in this precision; `None` where another engine does."""
    if options.engines.llm_engine != "vllm":
        return None
    from iblip.engines.language_model.vllm.building import check_vllm

    settings = options.vllm.settings()
    check_vllm(checkpoint, word, settings)
    return settings
