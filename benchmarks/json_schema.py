"""What a JSON schema adds to a step of decoding, with a vocabulary of LLaMA's size."""

from __future__ import annotations

import random
import statistics
import string
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from iblip.engines.language_model.decoding.grammars import Grammars

VOCABULARY = 32_000
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["title", "count", "colours"],
    "additionalProperties": False,
}
ANSWERS = 40


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Microseconds of a processor for a step; milliseconds to compile, without the trial."""
    tokenizer = _with_more_tokens(Tokenizer.from_file(str(checkpoint / "tokenizer.json")))
    end = tokenizer.token_to_id("</s>")
    assert end is not None
    grammars = Grammars(tokenizer, VOCABULARY, [end])
    first_s = _seconds(lambda: grammars.compiled({"type": "string"}))
    compile_s = _seconds(lambda: grammars.compiled(SCHEMA))
    steps = [step for seed in range(ANSWERS) for step in _answer(grammars, end, seed)]
    return {
        "first_schema_ms": round(first_s * 1e3),
        "compile_ms": round(compile_s * 1e3),
        "steps": len(steps),
        "step_us_median": round(statistics.median(steps) * 1e6),
        "step_us_p99": round(float(np.quantile(steps, 0.99)) * 1e6),
    }


def _answer(grammars: Grammars, end: int, seed: int) -> list[float]:
    """Seconds of each step of an answer of random tokens."""
    constraint, draw = grammars.compiled(SCHEMA).begin(), np.random.default_rng(seed)
    seconds = []
    token = -1
    while token != end:
        scores = draw.normal(size=VOCABULARY).astype(np.float32)
        started = time.thread_time()
        constraint.mask(scores)
        masked = time.thread_time()
        token = int(scores.argmax())
        chosen = time.thread_time()
        constraint.advance(token)
        seconds.append(masked - started + time.thread_time() - chosen)
    return seconds


def _with_more_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The demo's tokenizer has 712 tokens, LLaMA's 32,000: words of random letters are added."""
    draw = random.Random(0)
    words: set[str] = set()
    while len(words) < VOCABULARY - tokenizer.get_vocab_size():
        words.add("▁" * draw.randint(0, 1) + "".join(draw.choices(string.ascii_letters, k=7)))
    tokenizer.add_tokens(sorted(words))
    return tokenizer


def _seconds(work: Any) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
