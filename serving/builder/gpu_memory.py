"""What a build will take of a GPU's memory, and the slots and positions that it gets for that.

The arithmetic is `engines.memory`'s; here it is given a checkpoint, its precisions and its engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from iblip.engines.kinds import runs_on_gpu
from iblip.engines.memory import (
    FLOAT32,
    LEAST_POSITIONS,
    PREFILL,
    USUAL_CARD,
    VLLM_WORK,
    ComponentMemory,
    Layer,
    MemoryPlan,
    bytes_a_position,
    choose_limits,
)
from iblip.export.artifact.contract import DTYPES as ITEMS
from iblip.export.artifact.manifest import BATCH, LANGUAGE_MODEL, LanguageModelFacts
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import OptionError
from iblip.export.messages import size_text
from iblip.export.precision import DTYPES, PrecisionPolicy
from iblip.export.progress import Progress
from iblip.export.quantisation.options import Quantisation
from iblip.serving.builder.options import LLM_ENGINES, BuildOptions
from iblip.serving.builder.sizes import INSTRUCTION


def find_card(options: BuildOptions) -> int | None:
    """Bytes of the GPU that a build is for: as it was told, or else this machine's first.

    Returns:
        `None` if plans are built for other GPUs than this machine's, or there is none here.
    """
    from iblip.engines.hardware.nvidia import find_driver

    if options.engines.gpu_memory is not None:
        return options.engines.gpu_memory
    driver = None if options.plans.targets else find_driver()
    return driver.gpus[0].memory if driver and driver.gpus else None


def plan_of_options(
    options: BuildOptions,
    checkpoint: Checkpoint,
    policy: PrecisionPolicy,
    quantised: Mapping[str, Quantisation],
    engines: Mapping[str, str],
    facts: LanguageModelFacts,
    progress: Progress,
) -> MemoryPlan | None:
    """The plan of a build, with the slots and positions that are chosen for it.

    Args:
        options: what is asked for.
        checkpoint: what is exported.
        policy: the precision of each component.
        quantised: by component, of those that are.
        engines: the kind of each component's engine.
        facts: of the language model.
        progress: told what is chosen, where that is less than the usual.

    Returns:
        `None` if nothing of the build runs on a GPU.

    Raises:
        OptionError: it does not fit the card, with the numbers and what to do; or a card is named
            and nothing runs on one.
    """
    card, asked = find_card(options), options.limits
    on_gpu = [name for name, kind in engines.items() if runs_on_gpu(kind)]
    if engines[LANGUAGE_MODEL] == "vllm":  # on a GPU or not: the environment decides where it runs
        on_gpu.append(LANGUAGE_MODEL)
    if not on_gpu:
        if options.engines.gpu_memory is not None:
            raise OptionError(
                "--gpu-memory is for engines on a GPU, and this build runs on the CPU. Add --engine"
                " onnxruntime-cuda, or leave it out."
            )
        return None
    plan = _plan(options, checkpoint, policy, quantised, engines, on_gpu)
    usual, longest = LLM_ENGINES[options.engines.llm_engine], facts.max_length
    slots, positions = asked.slots or usual, asked.max_length or longest
    if LANGUAGE_MODEL not in on_gpu:
        return _check(plan(slots, positions, card))
    target = USUAL_CARD if card is None else card
    images = (asked.max_images or 1) * facts.num_query_tokens
    chosen = choose_limits(
        lambda slots, positions: plan(slots, positions, target),
        slots=asked.slots,
        positions=asked.max_length,
        default_slots=usual,
        longest=longest,
        least=max(LEAST_POSITIONS, images + 2),
    )
    if chosen is None:
        return _check(plan(slots, positions, card))
    if (chosen.slots, chosen.positions) != (slots, positions):
        progress.note(
            f"GPU memory: {chosen.slots} slots of {chosen.positions:,} positions (usual: {slots} of"
            f" {positions:,}) fit a card of {target / 1e9:.1f} GB. --gpu-memory, --slots and"
            " --max-length say otherwise; --dry-run shows the plan."
        )
    _check_share(options, chosen, card)
    return replace(chosen, card=card)


def _check_share(options: BuildOptions, plan: MemoryPlan, card: int | None) -> None:
    """Refuses a share of the card for vLLM that leaves too little for the components beside it."""
    share = options.vllm.gpu_memory_utilization
    others = sum(row.total for row in plan.components if row.component != LANGUAGE_MODEL)
    if share is None or card is None or share * card + others <= card:
        return
    raise OptionError(
        f"--gpu-memory-utilization is {share}: {size_text(round(share * card))} for vLLM beside"
        f" {size_text(others)} for vision encoder and Q-Former are more than the card's"
        f" {size_text(card)}. At most {int((1 - others / card) * 100) / 100} fits; without the"
        " option, vLLM gets what they leave."
    )


def _check(plan: MemoryPlan) -> MemoryPlan:
    """Raises OptionError if it does not fit its card."""
    if plan.fits:
        return plan
    raise OptionError(f"this build does not fit the GPU.\n{plan}\n{plan.advice()}")


def _plan(
    options: BuildOptions,
    checkpoint: Checkpoint,
    policy: PrecisionPolicy,
    quantised: Mapping[str, Quantisation],
    engines: Mapping[str, str],
    on_gpu: list[str],
) -> Any:
    """A function of slots, positions and card."""
    from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
    from iblip.export.estimate import estimate_components

    weights = {
        each.component: each.on_gpu for each in estimate_components(checkpoint, policy, quantised)
    }
    graphs = components_from_checkpoint(checkpoint, policy)
    decoder = next(graph.contract for graph in graphs if graph.graph == "batched_decoder")
    vllm = options.vllm.settings() if engines[LANGUAGE_MODEL] == "vllm" else None
    shares = vllm.tensor_parallel * vllm.pipeline_parallel if vllm else 1
    position = bytes_a_position(decoder) // shares if LANGUAGE_MODEL in on_gpu else 0
    batch = max(options.sizes.max_batch or BATCH, options.limits.max_images or 1)
    instruction = options.sizes.max_instruction or INSTRUCTION
    work = {
        "vision_encoder": _vision_work(checkpoint.config, policy, batch),
        "qformer": _qformer_work(checkpoint.config, policy, batch, instruction),
    }

    @cache
    def language_model_work(slots: int, positions: int) -> int:
        if vllm is not None:
            return VLLM_WORK
        return _language_model_work(
            checkpoint.config.text_config,
            policy,
            slots,
            positions,
            position,
            small=LANGUAGE_MODEL in quantised,
        )

    def plan(slots: int, positions: int, card: int | None) -> MemoryPlan:
        works = {**work, LANGUAGE_MODEL: language_model_work(slots, positions)}
        return MemoryPlan(
            components=tuple(
                ComponentMemory(
                    component=name,
                    weights=weights[name] // (shares if name == LANGUAGE_MODEL else 1),
                    work=works[name],
                )
                for name in on_gpu
            ),
            position=position,
            slots=slots,
            positions=positions,
            card=card,
            pooled=vllm is not None,
        )

    return plan


def _itemsize(word: str) -> int:
    return np.dtype(ITEMS[DTYPES[word]]).itemsize


def _count_patches(vision: Any) -> int:
    """Rows of `image_embeds`: the patches, and a class token."""
    return int(vision.image_size // vision.patch_size) ** 2 + 1


def _vision_work(config: Any, policy: PrecisionPolicy, batch: int) -> int:
    vision = config.vision_config
    patches = _count_patches(vision)
    layer = Layer(
        hidden=vision.hidden_size,
        inner=vision.intermediate_size,
        heads=vision.num_attention_heads,
        itemsize=_itemsize(policy.vision_encoder),
    )
    pixels = batch * int(vision.image_size) ** 2 * 3 * (1 + 3 * FLOAT32)
    return pixels + layer.work(batch, patches, patches)


def _qformer_work(config: Any, policy: PrecisionPolicy, batch: int, instruction: int) -> int:
    vision, text = config.vision_config, config.text_config
    patches, queries = _count_patches(vision), int(config.num_query_tokens)
    own = getattr(config, "qformer_config", None)
    itemsize = _itemsize(policy.qformer)
    prompt = batch * queries * int(text.hidden_size) * FLOAT32
    if own is None:  # neighbouring patches are merged
        return prompt + 2 * batch * patches * int(vision.hidden_size) * FLOAT32
    layer = Layer(
        hidden=own.hidden_size,
        inner=own.intermediate_size,
        heads=own.num_attention_heads,
        itemsize=itemsize,
    )
    keys = batch * patches * int(vision.hidden_size + 2 * own.hidden_size) * FLOAT32
    return (
        prompt
        + keys
        + layer.work(batch, queries + instruction, max(patches, queries + instruction))
    )


def _language_model_work(
    text: Any, policy: PrecisionPolicy, slots: int, positions: int, position: int, *, small: bool
) -> int:
    """Of prefill, which is wider than a step; T5 encodes a whole prompt at once."""
    itemsize = _itemsize(policy.language_model)
    names = ("d_ff", "ffn_dim", "intermediate_size")
    inner = next(int(getattr(text, name)) for name in names if getattr(text, name, None))
    layer = Layer(
        hidden=text.hidden_size,
        inner=inner,
        heads=text.num_attention_heads,
        # T5's `wo` reads float32.
        itemsize=FLOAT32 if text.is_encoder_decoder else itemsize,
    )
    logits = max(PREFILL, slots) * int(text.vocab_size) * (FLOAT32 + itemsize)
    # Where a run has many rows, a matrix of small weights is unpacked first.
    unpacked = max(int(text.vocab_size), inner) * int(text.hidden_size) * itemsize if small else 0
    if text.is_encoder_decoder:
        cross = positions * position  # of all layers, before they are put into the slot
        return logits + unpacked + cross + layer.work(1, positions, positions)
    return logits + unpacked + layer.work(1, max(PREFILL, slots), 0)
