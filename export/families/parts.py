"""`Parts`: takes the place of a processor if transformers has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An image processor and a tokenizer, by the names that transformers' processors call them."""

    image_processor: Any
    tokenizer: Any

    @classmethod
    def from_pretrained(cls, directory: Path, *, local_files_only: bool) -> Self:
        """Reads both from `directory`. Raises what transformers raises."""
        import transformers

        kinds: tuple[Any, Any] = transformers.AutoImageProcessor, transformers.AutoTokenizer
        image_processor, tokenizer = (
            kind.from_pretrained(directory, local_files_only=local_files_only) for kind in kinds
        )
        return cls(image_processor=image_processor, tokenizer=tokenizer)
