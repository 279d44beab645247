"""Targets without a model: what they are asked is their answer."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from iblip.engines.language_model.types import Answer, Timing
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import EngineError
from iblip.serving.bulk.rows import read_rows
from iblip.serving.bulk.running import Job, run_job
from iblip.serving.bulk.targets import Targets
from iblip.serving.client.compat import resolve_options
from iblip.serving.wire.contract import Limits, ServedBuild, ServerContract

LIMITS = Limits(
    max_instruction=30,
    images=2,
    max_length=64,
    num_query_tokens=8,
    default_max_new_tokens=20,
    slots=4,
    queue=16,
    max_prompt_bytes=300,
    max_option_bytes=200,
    max_logprobs=1000,
)
SMALL = ServerContract(
    preprocessing=Preprocessing(height=8, width=8, resample="BICUBIC"),
    limits=LIMITS,
    build=ServedBuild(
        name="small",
        family="instructblip",
        language_model="llama",
        precision={"vision_encoder": "fp32"},
        created="2026-11-28T00:00:00+00:00",
    ),
)


class Echo:
    """Answers with the prompt and what the image is like, after a while."""

    def __init__(self, contract: ServerContract = SMALL, seconds: float = 0.0) -> None:
        self.asked: list[tuple[Any, str, Any]] = []
        self.fails: dict[str, Exception] = {}
        self.most, self.closed = 0, False
        self._contract, self._seconds = contract, seconds
        self._running, self._lock = 0, threading.Lock()

    def contract(self) -> ServerContract:
        return self._contract

    def ask(self, pixels: Any, prompt: str, options: Any, compat: str | None) -> Answer:
        wanted, _ = resolve_options(self._contract, options, compat)
        with self._lock:
            self.asked.append((pixels, prompt, wanted.to_mapping()))
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(self._seconds)
        with self._lock:
            self._running -= 1
        if self.closed:
            raise EngineError("closed")
        if prompt in self.fails:
            raise self.fails[prompt]
        return Answer(
            text=f"{prompt} {int(np.mean(pixels))}",
            token_ids=(1,),
            finish_reason="eos",
            prompt_tokens=1,
            completion_tokens=1,
            seed=None,
            timing=Timing(vision_s=0, queue_s=0, prefill_s=0, decode_s=0),
        )

    def vision_cache_hits(self) -> int | None:
        return None

    def close(self) -> None:
        self.closed = True


class Held(Echo):
    """Answers until a file has so many lines, and then no more."""

    def __init__(self, output: Path, most: int) -> None:
        super().__init__(seconds=0.01)
        self._output, self._most = output, most

    def ask(self, *question: Any) -> Answer:
        while self._output.read_bytes().count(b"\n") >= self._most:
            time.sleep(1)
        return super().ask(*question)


if __name__ == "__main__":
    _, given, output, most = sys.argv
    job = Job(options={}, prompts=("What?", "Why?"))
    targets = Targets([Held(Path(output), int(most))])
    print("begun", flush=True)
    print(run_job(read_rows(Path(given)), targets, Path(output), job), flush=True)
