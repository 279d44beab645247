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
from iblip.export.system.paths import PathLike, path_from

_SCHEME = re.compile(r"([a-z][a-z0-9]+):(.+)")

_HUB = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]+")  # ORG/NAME; not ./NAME or ../NAME


@dataclass(frozen=True, kw_only=True)
class AdapterName:
    """What one `--adapter` names.

    Attributes:
        place: a directory, or an adapter of the hub (`ORG/NAME`).
        revision: branch, tag or commit of the hub's; `None` is its main branch.
    """

    place: str
    revision: str | None = None

    @classmethod
    def parse(cls, word: PathLike) -> Self:
        """Reads `DIR`, `ORG/NAME` or `ORG/NAME@REVISION`; a `Path` is always a directory.

        Raises:
            OptionError: the word is empty, or no path.
        """
        if not isinstance(word, str):
            return cls(place=str(path_from(word, "an adapter").absolute()))
        place, _, revision = word.partition("@")
        if _HUB.fullmatch(place) and not Path(word).is_dir():
            if "@" in word and not revision:
                raise OptionError(f"--adapter {word}: expected a revision behind the @")
            return cls(place=place, revision=revision or None)
        if not word:
            raise OptionError("--adapter is empty; expected a directory, or ORG/NAME of the hub")
        return cls(place=word)

    @property
    def is_on_hub(self) -> bool:
        """Whether it can only be an adapter of the hub."""
        return _HUB.fullmatch(self.place) is not None and not Path(self.place).is_dir()

    @property
    def short(self) -> str:
        """A short name, which can be part of a directory's."""
        return Path(self.place).resolve().name

    def __str__(self) -> str:
        return f"{self.place}@{self.revision}" if self.revision else self.place


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A checkpoint that is to be opened.

    Attributes:
        model: a directory, a model of the hub (`ORG/NAME`), or a scheme of `READERS` and a name
            (`lavis:…`).
        revision: branch, tag or commit of a model of the hub; `None` is its main branch.
        parts: paths of an original's files, by the names that its reader gives them.
        image_size: height and width of the images, in pixels; `None` is the checkpoint's own.
        adapters: that are merged into it, in this order.

    Raises:
        OptionError: the size is below 1, or `model` or a part is no path.
    """

    model: str
    revision: str | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    image_size: int | None = None
    adapters: tuple[AdapterName, ...] = ()

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
            own = self.model.partition(":")[2].replace("/", "-")
        else:
            own = Path(self.model).resolve().name
        return "+".join((own, *(adapter.short for adapter in self.adapters)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return {
            "model": self.model,
            "revision": self.revision,
            "parts": {name: str(path) for name, path in self.parts.items()},
            "image_size": self.image_size,
            "adapters": list(map(str, self.adapters)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; other keys are ignored."""
        return cls(
            model=data["model"],
            revision=data["revision"],
            parts={name: Path(path) for name, path in data["parts"].items()},
            image_size=data["image_size"],
            adapters=adapters_from_words(data.get("adapters", ())),  # none in older manifests
        )


def adapters_from_words(words: Iterable[PathLike]) -> tuple[AdapterName, ...]:
    """Reads each of the adapters that `--adapter` names.

    Raises:
        OptionError: as `AdapterName.parse`.
    """
    return tuple(map(AdapterName.parse, words))


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
