"""An engine around a process that speaks vLLM's end of the protocol, without vLLM."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from iblip.engines.language_model.vllm.engine import VllmEngine
from iblip.engines.language_model.vllm.process import WorkerProcess
from iblip.engines.language_model.vllm.restarts import Restarts
from iblip.engines.text.prompts import PromptTokenizer
from iblip.export.artifact.manifest import LanguageModelFacts

ROOT = Path(__file__).parents[4]
COMMAND = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
IMAGE = 258


@pytest.fixture
def start() -> Callable[..., Callable[..., WorkerProcess]]:
    """`start(fault=…)(receive)`: starts the process, with these arguments of its engine."""

    def make(**arguments: Any) -> Callable[..., WorkerProcess]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return partial(WorkerProcess, COMMAND, environment, arguments)

    return make


@pytest.fixture
def engine(
    start: Callable[..., Any], byte_tokenizer: Tokenizer, facts: Callable[..., LanguageModelFacts]
) -> Iterator[Callable[..., VllmEngine]]:
    """`engine(sequences=…, queue_limit=…, positions=…, **arguments)`; closed after the test."""
    opened: list[VllmEngine] = []

    def make(
        *,
        sequences: int = 4,
        queue_limit: int = 64,
        positions: int | None = None,
        restarts: Restarts | None = None,
        **arguments: Any,
    ) -> VllmEngine:
        made = facts(image_token_id=IMAGE, max_length=10_000, default_max_new_tokens=900)
        prompts = PromptTokenizer(
            tokenizer=byte_tokenizer, limit=9_000, most_images=4, image_token_id=IMAGE
        )
        opened.append(
            VllmEngine(
                start(**arguments),
                prompts,
                made,
                sequences=sequences,
                queue_limit=queue_limit,
                positions=positions,
                restarts=restarts or Restarts(first_s=0.01),
            )
        )
        return opened[-1]

    yield make
    for one in opened:
        one.close()
