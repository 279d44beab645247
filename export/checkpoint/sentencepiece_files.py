"""Checks a directory's sentencepiece model before transformers reads it.

Where that fails, transformers takes the file for another library's and asks for that one.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.system.installing import install_command, missing_package

SUFFIX = ".model"
"""Of sentencepiece's files: LLaMA's `tokenizer.model`, T5's `spiece.model`."""


def check_sentencepiece(directory: Path) -> None:
    """Checks the sentencepiece model in `directory`, if it has one and no `tokenizer.json`.

    Raises:
        CheckpointError: the file is no sentencepiece model, or the library cannot read any here.
        MissingPackageError: the library is not installed.
    """
    models = sorted(directory.glob(f"*{SUFFIX}"))
    if (directory / "tokenizer.json").exists() or not models:
        return
    pieces = _messages(models[0])
    try:
        count = len(pieces.ModelProto.FromString(models[0].read_bytes()).pieces)
    except Exception as error:  # protobuf's own kinds, by its version
        raise _damaged(models[0], str(error)) from error
    if not count:
        raise _damaged(models[0], "it has no pieces")


def _messages(path: Path) -> Any:
    """The module of sentencepiece's messages: code generated for some version of protobuf."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise missing_package(error, f"reading {path}") or error from error
    except Exception as error:
        versions = [f"{name} {metadata.version(name)}" for name in ("sentencepiece", "protobuf")]
        raise CheckpointError(
            f"{path} is read with sentencepiece, and {' does not work with '.join(versions)}"
            f" ({error}). Run `{install_command('cpu')}`, which installs versions that fit."
        ) from error
    return sentencepiece_model_pb2


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a sentencepiece model ({reason}). Was it downloaded whole? It has"
        f" {path.stat().st_size} bytes."
    )
