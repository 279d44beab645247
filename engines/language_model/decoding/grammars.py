"""Answers that a JSON schema allows: which tokens may come next. llguidance does the work.

A grammar is compiled once for each schema, in the thread that submits the request, never in the one
that decodes. A schema comes from a caller, and a short one can take llguidance minutes or all
memory: so it is tried first in a process with limits. Each sequence then has a copy of the compiled
grammar, which it walks token by token.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iblip.engines.language_model.decoding import grammar_trial
from iblip.engines.language_model.decoding.logits_processors import Scores
from iblip.engines.text.token_bytes import bytes_of_tokens, marks_spaces
from iblip.export.errors import EngineError, OptionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEPT = 16
"""Compiled grammars of the latest schemas."""

TRIAL_CPU_S, TRIAL_S = 1, 60
"""Seconds of a processor that compiling may take; and seconds on the clock, on a busy machine."""

TRIAL_BYTES = 64 << 20
"""Memory that a compiled grammar may take."""

SPACING = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}
"""Between the parts of an object or a list there may be one space: endless ones would be an answer
that says nothing until it is cut off."""

PRINTABLE = range(0x20, 0x7F)


class Grammars:
    """The grammars of one model. May be used from several threads.

    Args:
        tokenizer: the language model's.
        vocab_size: of the logits.
        ends: tokens that end an answer, one at least.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._vocab_size, self._ends = tokenizer, vocab_size, list(ends)
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(self, schema: Mapping[str, Any]) -> Grammar:
        """The grammar of a schema. Compiling a new one takes a fraction of a second.

        Raises:
            OptionError: the schema is none, has a keyword that llguidance does not know, allows
                nothing, takes too much time or memory, or asks for a character that no token has.
            EngineError: llguidance is not installed.
        """
        text = json.dumps({**schema, "x-guidance": SPACING})
        with self._lock:
            matcher = self._compiled.get(text)
            if matcher is not None:
                self._compiled.move_to_end(text)
        if matcher is None:
            matcher = self._compile(text)
            with self._lock:
                self._compiled[text] = matcher
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Grammar(matcher, self._lacking, self._vocab_size)

    def _compile(self, text: str) -> Any:
        library = _import_llguidance()
        opening = '" "? ' if marks_spaces(self._tokenizer) else ""
        grammar = f"start: {opening}answer\nanswer: %json {text}"
        _try(grammar, Path(library.__file__).parents[1])
        matcher = library.LLMatcher(
            self._vocabulary,
            grammar,
            log_level=0,
            limits=library.LLParserLimits(**grammar_trial.LIMITS),
        )
        _check(matcher)
        _check_forced(matcher, self._lacking)
        return matcher

    @cached_property
    def _tokens(self) -> list[bytes]:
        tokens = bytes_of_tokens(self._tokenizer)[: self._vocab_size]
        return [*tokens, *[b""] * (self._vocab_size - len(tokens))]

    @cached_property
    def _lacking(self) -> frozenset[int]:
        """Printable bytes that no token has, such as T5's braces."""
        return frozenset(PRINTABLE) - frozenset(b"".join(self._tokens))

    @cached_property
    def _vocabulary(self) -> Any:
        library = _import_llguidance()
        return library.LLTokenizer(_Vocabulary(self._tokens, self._ends), eos_token=self._ends)


@dataclass(frozen=True)
class Grammar:
    """What answers are allowed.

    Attributes:
        matcher: llguidance's, at the beginning.
        lacking: bytes that no token has.
        vocab_size: of the logits.
    """

    matcher: Any
    lacking: frozenset[int]
    vocab_size: int

    def begin(self) -> Constraint:
        """What holds one answer to it."""
        return Constraint(self.matcher.deep_copy(), self.lacking, self.vocab_size)


class Constraint:
    """One sequence's place in a grammar.

    Args:
        matcher: llguidance's, at the beginning; this object's own.
        lacking: bytes that no token has.
        vocab_size: of the logits.
    """

    def __init__(self, matcher: Any, lacking: frozenset[int], vocab_size: int) -> None:
        self._matcher, self._lacking = matcher, lacking
        self._mask = np.zeros((vocab_size + 31) // 32, np.int32)  # a bit for each token
        self._size = vocab_size

    def mask(self, scores: Scores) -> None:
        """Forbids, in place, every token of `[vocab]` that cannot come next.

        Raises:
            OptionError: no token can, or finding it out takes too much.
        """
        if self._lacking:
            _check_forced(self._matcher, self._lacking)
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        _check(self._matcher)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=self._size)
        scores[: self._size][bits == 0] = -np.inf
        scores[self._size :] = -np.inf
        if scores.max() == -np.inf:
            raise OptionError(
                "json_schema, with the request's other options, forbids every token at this place "
                "of the answer: the model's tokens cannot spell what must come next, or "
                "banned_words, no_repeat_ngram_size or logit_bias forbid it"
            )

    def advance(self, token: int) -> None:
        """Takes the token that was chosen."""
        self._matcher.consume_token(token)
        _check(self._matcher)


class _Vocabulary:
    """What llguidance asks of a tokenizer.

    Args:
        tokens: the bytes of each; none of a special token.
        ends: tokens that end an answer.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.tokens, self.eos_token_id = tokens, ends[0]
        self.special_token_ids = [token for token, data in enumerate(tokens) if not data]
        # Of tokens with the same bytes, the later: LLaMA's byte tokens come first.
        self._ids = {data: token for token, data in enumerate(tokens) if data}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str | bytes) -> list[int]:
        """Splits text that must come next into tokens: each time, the longest that fits."""
        data = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids


def _import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EngineError(
            "json_schema needs llguidance, which is not installed where the model runs: "
            "pip install llguidance"
        ) from error
    return llguidance


def _try(grammar: str, site: Path) -> None:
    """Compiles the grammar in a process of its own.

    Raises:
        OptionError: it is wrong, or it takes too much.
    """
    python = sys.executable or shutil.which("python3") or "python3"
    words = [python, "-P", "-S", grammar_trial.__file__, str(TRIAL_CPU_S), str(TRIAL_BYTES)]
    try:
        done = subprocess.run(
            words,
            input=grammar.encode(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(site)},
            timeout=TRIAL_S,
            check=False,
        )
        status = done.returncode
    except subprocess.TimeoutExpired:
        status = -1
    if status:
        raise OptionError(
            f"json_schema takes more than {TRIAL_CPU_S} s or {TRIAL_BYTES >> 20} MiB to compile. "
            "Simplify it: patterns that must hold together, large numbers in multipleOf, and long "
            "lists of properties take most."
        )
    _refuse(done.stdout.decode(errors="replace"))


def _check(matcher: Any) -> None:
    if matcher.is_error():
        _refuse(matcher.get_error())


def _refuse(error: str) -> None:
    """Raises `OptionError` where llguidance has found something wrong."""
    if not error:
        return
    # The place that it names is one in the grammar around the schema, which is then shown whole.
    first, *more = error.strip().splitlines()
    cause = first.rpartition("failed to compile JSON schema: ")[2]
    if cause.endswith(":"):  # a pattern: shown first, and what is wrong with it last
        cause += "".join(line.removeprefix("error:") for line in more if line.startswith("error: "))
    raise OptionError(f"json_schema cannot be used: {cause[:300]}")


def _check_forced(matcher: Any, lacking: frozenset[int]) -> None:
    """Raises `OptionError` where what must come next has a character that no token has."""
    if not lacking:
        return
    missing = sorted({chr(byte) for byte in matcher.compute_ff_bytes() if byte in lacking})
    if missing:
        raise OptionError(
            f"json_schema needs {' and '.join(map(repr, missing))}, which no token of this model "
            "has. T5's vocabulary has no braces, so it can write no objects: ask for a string, a "
            "number, or a list of them."
        )
