"""The part of a build that is for vLLM: a Hugging Face directory, and the settings to run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iblip.engines.language_model.vllm.settings import PRECISIONS, VllmSettings
from iblip.export.artifact.manifest import EngineRecord
from iblip.export.errors import OptionError
from iblip.export.progress import Progress

if TYPE_CHECKING:
    from iblip.export.checkpoint.checkpoint import Checkpoint

MODEL = "engines/language_model"
"""The directory in a build that vLLM reads."""


def check_vllm(checkpoint: Checkpoint, precision: str, settings: VllmSettings) -> None:
    """Refuses what vLLM cannot run, before anything is exported.

    Args:
        checkpoint: the checkpoint to build.
        precision: of its language model.
        settings: how the model is spread over devices.

    Raises:
        OptionError: the message names what vLLM cannot run, and what it can.
    """
    from iblip.export.checkpoint.language_model_directory import CAUSAL_MODELS

    config = checkpoint.config.text_config
    instead = "Build it with --llm-engine onnxruntime."
    if config.model_type not in CAUSAL_MODELS:
        raise OptionError(
            f"--llm-engine vllm: {checkpoint.name} has a language model of type "
            f"{config.model_type!r}; vLLM takes visual prompts only for "
            f"{', '.join(CAUSAL_MODELS)}. {instead}"
        )
    if precision not in PRECISIONS:
        raise OptionError(
            f"--llm-engine vllm: language_model={precision} is for ONNX graphs; "
            f"vLLM runs this model in {', '.join(PRECISIONS)}. Choose one of them, or: {instead}"
        )
    settings.check_fit(heads=config.num_attention_heads, layers=config.num_hidden_layers)


def vllm_from_checkpoint(
    checkpoint: Checkpoint,
    work: Path,
    *,
    dtype: str,
    settings: VllmSettings,
    progress: Progress,
) -> EngineRecord:
    """Writes the language model into the unfinished build `work`; returns its record.

    Args:
        checkpoint: that has it.
        work: the build in the making.
        dtype: of its weights: `float32`, `float16` or `bfloat16`.
        settings: how vLLM is to run it.
        progress: told of the weights that are written.

    Raises:
        CheckpointError, ExportError: as
            `export.checkpoint.language_model_directory.write_language_model`.
    """
    from iblip.export.checkpoint.language_model_directory import write_language_model

    paths = write_language_model(checkpoint, work / MODEL, dtype, progress)
    return EngineRecord(
        kind="vllm",
        files={path.stem: str(path.relative_to(work)) for path in paths},
        details={**settings.to_details(), "dtype": dtype},
    )
