"""Every rule, in one table. A rule is one small function and its row."""

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
"""By their ids."""
