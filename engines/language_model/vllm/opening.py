"""Opens a build's language model on vLLM."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iblip.engines.hardware.nvidia import Driver, find_driver
from iblip.engines.language_model.option_table import MOST_LOGPROBS
from iblip.engines.language_model.vllm.engine import VllmEngine
from iblip.engines.language_model.vllm.environment import find_python, worker_environment
from iblip.engines.language_model.vllm.process import WORKER, WorkerProcess
from iblip.engines.language_model.vllm.settings import VllmSettings
from iblip.engines.memory import plan_of_build
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import EngineRecord, LanguageModelFacts, Manifest, ServingLimits
from iblip.export.errors import BuildDirectoryError, EngineError

CPU_CACHE_BYTES = 4 * 2**30
"""The most memory for keys and values on a CPU, unless one sequence takes more. Sequences that do
not fit wait in vLLM. VLLM_CPU_KVCACHE_SPACE, in GiB, overrides it."""

BLOCK = 128
"""Positions in each block of vLLM's CPU cache."""


def open_vllm(
    directory: Path, manifest: Manifest, limits: ServingLimits, *, threads: int | None = None
) -> VllmEngine:
    """Starts vLLM on a build's language model, and returns when it is ready.

    Args:
        directory: of the build.
        manifest: of the same build.
        limits: how much it takes on; a slot is a sequence that vLLM runs.
        threads: of each of vLLM's processes on a CPU; `None` shares the cores among them.

    Raises:
        BuildDirectoryError: the build lacks the directory that vLLM reads.
        EngineError: there is no environment with vLLM, vLLM does not start, or the GPU has too
            little memory.
    """
    record, facts = manifest.components["language_model"].engine, manifest.language_model
    missing = [path for path in record.files.values() if not (directory / path).is_file()]
    if missing:
        raise BuildDirectoryError(
            f"the build in {directory} lacks {', '.join(missing)}, which vLLM reads. "
            "Build it again with --llm-engine vllm."
        )
    arguments = {
        **engine_arguments(
            directory,
            record,
            facts,
            sequences=limits.slots,
            positions=limits.max_length,
            prefix_cache=limits.prefix_cache,
        ),
        **share_of_gpu(manifest, limits, find_driver()),
        "cpu_threads": threads,
    }
    command = [str(find_python()), "-I", str(WORKER)]
    start = partial(WorkerProcess, command, worker_environment(os.environ), arguments)
    return VllmEngine(
        start,
        PromptTokenizer.from_build(directory, manifest, max_length=limits.max_length),
        facts,
        sequences=limits.slots,
        positions=limits.max_length,
        queue_limit=limits.queue,
        stop=manifest.text.stop,
    )


def share_of_gpu(
    manifest: Manifest, limits: ServingLimits, driver: Driver | None
) -> dict[str, Any]:
    """What vLLM may take of a GPU that it shares with the components, as arguments of its engine.

    By itself vLLM takes a share of the whole card, and measures what is left of it while Triton
    loads the components beside it: it ends where their use of the card changes meanwhile (vLLM
    issue 56830), and leaves them too little. So it is told how much it gets for keys and values,
    and measures nothing.

    Args:
        manifest: of the build, whose components say what they take.
        limits: how much it takes on.
        driver: of this machine; `None` if there is none.

    Returns:
        Nothing where the user said the share, the build has not recorded what it takes, or there is
        no GPU.

    Raises:
        EngineError: the card has too little memory for one sequence beside all else.
    """
    settings = VllmSettings.from_details(manifest.components["language_model"].engine.details)
    card = driver.gpus[0].memory if driver and driver.gpus else None
    plan = plan_of_build(manifest, card=card, slots=limits.slots, positions=limits.max_length)
    if settings.gpu_memory_utilization is not None or plan is None or card is None:
        return {}
    if not plan.fits:
        raise EngineError(f"this build does not fit the GPU.\n{plan}\n{plan.advice()}")
    others = sum(row.total for row in plan.components if row.component != "language_model")
    return {
        "kv_cache_memory_bytes": plan.caches,
        # Where it starts, vLLM wants so much of the card to be free, whatever it then takes.
        "gpu_memory_utilization": round(1 - (others + plan.reserve) / card, 3),
    }


def engine_arguments(
    directory: Path,
    record: EngineRecord,
    facts: LanguageModelFacts,
    *,
    sequences: int,
    positions: int,
    prefix_cache: bool = True,
) -> dict[str, Any]:
    """The fields of vLLM's `AsyncEngineArgs` for the worker, JSON-ready.

    Text is handled on this side: vLLM loads no tokenizer, and each request names the tokens that
    end its answer.
    """
    dtype = record.details["dtype"]
    return {
        **VllmSettings.from_details(record.details).to_arguments(),
        "model": str((directory / record.files["config"]).parent.absolute()),
        "dtype": dtype,
        "enable_prompt_embeds": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": positions,
        "max_num_seqs": sequences,
        "max_logprobs": min(MOST_LOGPROBS, facts.vocab_size),
        "disable_log_stats": True,
        **({} if prefix_cache else {"enable_prefix_caching": False}),  # on by itself
        "cpu_kv_cache_bytes": _size_cpu_cache(facts, dtype, sequences, positions),
    }


def _size_cpu_cache(facts: LanguageModelFacts, dtype: str, sequences: int, positions: int) -> int:
    elements = 2 * facts.num_layers * facts.num_key_value_heads * facts.head_dim
    blocks = -(-positions // BLOCK) + 1
    per_sequence = blocks * BLOCK * elements * np.dtype(dtype).itemsize
    return max(per_sequence, min(per_sequence * sequences, CPU_CACHE_BYTES))
