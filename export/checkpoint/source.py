"""`ModelSource`: what `--model` and its options name.

It knows no format: `export.opening.READERS` has a row for each that is not a directory in Hugging
Face form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from iblip.export.errors import OptionError
from iblip.export.system.paths import path_from

_SCHEME = re.compile(r"([a-z][a-z0-9]+):(.+)")

_HUB = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]+")  # ORG/NAME; not ./NAME or ../NAME


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A checkpoint that is to be opened.

    Attributes:
        model: a directory, a model of the hub (`ORG/NAME`), or a scheme of `READERS` and a name
            (`lavis:…`).
        revision: branch, tag or commit of a model of the hub; `None` is its main branch.
        parts: paths of an original's files, by the names that its reader gives them.
        image_size: height and width of the images, in pixels; `None` is the checkpoint's own.

    Raises:
        OptionError: the size is below 1, or `model` or a part is no path.
    """

    model: str
    revision: str | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):  # a Path is a directory, and never a name of the hub
            object.__setattr__(self, "model", str(path_from(self.model, "model").absolute()))
        parts = {name: path_from(path, f"the part {name}") for name, path in self.parts.items()}
        object.__setattr__(self, "parts", parts)
        if self.image_size is not None and self.image_size < 1:
            raise OptionError(f"--image-size is {self.image_size}; expected 1 or more")

    @property
    def scheme(self) -> str | None:
        """The word before `:`; `None` for a directory or a model of the hub."""
        match = _SCHEME.fullmatch(self.model)
        return match[1] if match and not self.is_directory else None

    @property
    def is_directory(self) -> bool:
        """Whether there is such a directory, which takes precedence over the hub and schemes."""
        return Path(self.model).is_dir()

    @property
    def is_on_hub(self) -> bool:
        """Whether it can only be a model of the hub."""
        return _HUB.fullmatch(self.model) is not None and not self.is_directory

    @property
    def name(self) -> str:
        """A short name, which can be part of a directory's."""
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
        """The inverse of `to_json`; other keys are ignored."""
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
            raise OptionError(f"--part {word}: expected NAME=PATH")
        if name in parts:
            raise OptionError(f"--part {name} is given twice: {parts[name]} and {path}")
        parts[name] = Path(path)
    return parts
