"""Compiles a grammar in a process that may take long, or all memory: `grammars.py` ends it then.

    python grammar_trial.py SECONDS BYTES < GRAMMAR

Prints what is wrong with the grammar, or nothing. It imports nothing but llguidance, so it starts
in a tenth of a second.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
"""llguidance's own limits, lowered: a step of a hostile grammar takes milliseconds at most."""


def main() -> None:
    """Compiles standard input, and takes the first step."""
    seconds, most = map(int, sys.argv[1:])
    os.nice(10)  # requests that are being answered go first
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    # What the libraries have taken does not count.
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
    total = pages * resource.getpagesize() + most
    resource.setrlimit(resource.RLIMIT_AS, (total, total))
    grammar = sys.stdin.read()
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main()
