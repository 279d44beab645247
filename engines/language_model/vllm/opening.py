"""Opens a build's language model on vLLM."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iblip.engines.language_model.option_table import MOST_LOGPROBS
from iblip.engines.language_model.vllm.engine import VllmEngine
from iblip.engines.language_model.vllm.environment import find_python, worker_environment
from iblip.engines.language_model.vllm.process import WORKER, WorkerProcess
from iblip.engines.language_model.vllm.settings import VllmSettings
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import EngineRecord, LanguageModelFacts, Manifest, ServingLimits
from iblip.export.errors import BuildDirectoryError

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
        EngineError: there is no environment with vLLM, or vLLM does not start.
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
            directory, record, facts, sequences=limits.slots, positions=limits.max_length
        ),
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


def engine_arguments(
    directory: Path,
    record: EngineRecord,
    facts: LanguageModelFacts,
    *,
    sequences: int,
    positions: int,
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
        "cpu_kv_cache_bytes": _size_cpu_cache(facts, dtype, sequences, positions),
    }


def _size_cpu_cache(facts: LanguageModelFacts, dtype: str, sequences: int, positions: int) -> int:
    elements = 2 * facts.num_layers * facts.num_key_value_heads * facts.head_dim
    blocks = -(-positions // BLOCK) + 1
    per_sequence = blocks * BLOCK * elements * np.dtype(dtype).itemsize
    return max(per_sequence, min(per_sequence * sequences, CPU_CACHE_BYTES))
