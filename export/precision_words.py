"""The usual spellings of precisions, for what people type: `FP16` and `float16` are `fp16`."""

from __future__ import annotations

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
"""Other spellings of the words of `export.precision.DTYPES`."""


def spelt_here(text: str) -> str:
    """A precision, or a policy per component, in this project's words; unknown ones stay."""
    items = (item.strip().rpartition("=") for item in text.split(","))
    return ",".join(
        component + equals + ALIASES.get(word.strip().lower(), word.strip().lower())
        for component, equals, word in items
    )
