"""The rules of `iblip lint`, in one table: `RULES`, by id.

A rule is a small function, `_check_` and its id, and a row that says what must hold, why, what to
do and what the real server does. Each module here has the rules of one topic. A rule takes a model
and its repository as `serving.lint.reading` has read them, and yields `Fault`s; it reads no config
itself and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from iblip.serving.lint.rule import Rule
from iblip.serving.lint.rules import (
    batching,
    builds,
    ensembles,
    files,
    instances,
    plans,
    sequences,
    steps,
    tensors,
    texts,
)

RULES: Mapping[str, Rule] = {
    rule.id: rule
    for table in (
        texts.RULES,
        files.RULES,
        tensors.RULES,
        batching.RULES,
        sequences.RULES,
        instances.RULES,
        ensembles.RULES,
        steps.RULES,
        builds.RULES,
        plans.RULES,
    )
    for rule in table
}
"""By id."""
