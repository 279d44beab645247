"""`TextRules`: what an original does with text otherwise than transformers today."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How an original tokenises, decodes and begins; the defaults are those of transformers.

    Attributes:
        tokenizer: the tokenizer that is reproduced: class, version and settings; empty if it is
            the checkpoint's own.
        bytes_apart: see `export.artifact.manifest.LanguageModelFacts`.
        start_token_id: see there.
    """

    tokenizer: str = ""
    bytes_apart: bool = False
    start_token_id: int | None = None
