"""Where a checkpoint comes from: what `--model` was given, and what opens it.

Knows no format: `READERS` has a row for each that is not a directory in Hugging Face form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from iblip.export.errors import OptionError

if TYPE_CHECKING:
    pass

_SCHEME = re.compile(r"([a-z][a-z0-9]+):(.+)")

_HUB = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]+")  # ORG/NAME; not ./NAME or ../NAME


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What is to be opened.

    Attributes:
        model: a directory, a model of the hub (`ORG/NAME`), or a scheme of `READERS` with a name
            behind it (`lavis:…`).
        revision: of a model of the hub: branch, tag or commit; `None` is its main branch.
        parts: what an original's files are, by the names that its reader gives them.
        image_size: height and width that pictures are to have, in pixels; `None` is the
            checkpoint's own.

    Raises:
        OptionError: a size that no picture has.
    """

    model: str
    revision: str | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise OptionError(f"--image-size is {self.image_size}; wanted 1 or more")

    @property
    def scheme(self) -> str | None:
        """What stands before the name, of a model that is neither a directory nor on the hub."""
        found = _SCHEME.fullmatch(self.model)
        return found[1] if found and not self.is_directory else None

    @property
    def is_directory(self) -> bool:
        """Whether there is such a directory: it goes before all else of that name."""
        return Path(self.model).is_dir()

    @property
    def is_on_hub(self) -> bool:
        """Whether it can only be a model of the hub."""
        return _HUB.fullmatch(self.model) is not None and not self.is_directory

    @property
    def name(self) -> str:
        """Short enough to call a directory by."""
        if self.scheme:
            return self.model.partition(":")[2].replace("/", "-")
        return Path(self.model).resolve().name

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return {
            "model": self.model,
            "revision": self.revision,
            "parts": {name: str(path) for name, path in self.parts.items()},
            "image_size": self.image_size,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; other keys are passed over."""
        return cls(
            model=data["model"],
            revision=data["revision"],
            parts={name: Path(path) for name, path in data["parts"].items()},
            image_size=data["image_size"],
        )


def parts_from_words(words: Iterable[str]) -> dict[str, Path]:
    """Reads `NAME=PATH`, one for each part.

    Raises:
        OptionError: a word is of another form, or a part is given twice.
    """
    parts: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise OptionError(f"--part {word}: wanted NAME=PATH")
        if name in parts:
            raise OptionError(f"--part {name} is given twice: {parts[name]} and {path}")
        parts[name] = Path(path)
    return parts
