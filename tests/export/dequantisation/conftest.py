"""Whole checkpoints with layers that other libraries have quantised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

FILES = Path(__file__).parent / "files"

LAYERS = "model.layers."


@pytest.fixture
def quantised_checkpoint(
    random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], Path]:
    """`quantised_checkpoint("awq")`: a random one, with the language model's layers of `FILES`."""

    def write(name: str) -> Path:
        directory = Path(shutil.copytree(random_checkpoint("quantisable"), tmp_path / name))
        own = load_file(directory / "model.safetensors")
        kept = {n: t for n, t in own.items() if not n.startswith(f"language_model.{LAYERS}")}
        layers = {
            f"language_model.{n}": t
            for n, t in load_file(FILES / name / "model.safetensors").items()
            if n.startswith(LAYERS)
        }
        save_file({**kept, **layers}, directory / "model.safetensors", {"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        settings = json.loads((FILES / name / "config.json").read_text())["quantization_config"]
        (directory / "config.json").write_text(
            json.dumps(config | {"quantization_config": settings})
        )
        return directory

    return write
