"""Kinds of values on the command line: paths that must be there, and words that shells complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from iblip.export.system.json_text import parse_json
from iblip.export.system.paths import expanded


class AnyPath(click.Path):
    """A path, of which a `~` at its beginning is the user's home: shells leave `--output=~/x`.

    Args:
        kind: "directory" shows it as such in `--help`.
    """

    def __init__(self, kind: str = "path") -> None:
        super().__init__(path_type=Path, file_okay=kind != "directory")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        if not str(value):
            self.fail("it is empty; expected a path", param, ctx)
        path = expanded(value)
        if not self.file_okay and path.is_file():
            self.fail(f"{value} is a file; expected a directory", param, ctx)
        return path


PATH = AnyPath()
ANY_DIRECTORY = AnyPath("directory")


class JsonText(click.ParamType[Any]):
    """JSON, or @ and the name of a file that has it."""

    name = "JSON"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """It as Python's values."""
        try:
            text = Path(value[1:]).read_text() if value.startswith("@") else value
            return parse_json(text)
        except (OSError, ValueError) as error:
            self.fail(f"{value[:80]!r} is neither JSON nor @FILE with JSON: {error}", param, ctx)


class ExistingPath(click.Path):
    """A path that must be there; a call that names another is wrong (exit status 2).

    Args:
        kind: what it is, in words: "directory" also refuses files.
    """

    def __init__(self, kind: str = "file or directory") -> None:
        super().__init__(path_type=Path, file_okay=kind != "directory")
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        path = expanded(value)
        if not str(value):
            self.fail("it is empty; expected a path", param, ctx)
        if not (path.is_dir() if self.kind == "directory" else path.exists()):
            self.fail(f"there is no {self.kind} {value}", param, ctx)
        return path


DIRECTORY = ExistingPath("directory")


class ImagePath(click.ParamType[str]):
    """An image file, which must exist; `-` and URLs are left to whoever reads them."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word; a path with `~` as the path it stands for."""
        word = str(value)
        is_file = word != "-" and "://" not in word and not word.startswith("data:")
        if not is_file:
            return word
        if not (word and expanded(word).exists()):
            self.fail(f"there is no image {word}", param, ctx)
        return str(expanded(word))


IMAGE = ImagePath()


class Word(click.ParamType[str]):
    """A word that shells complete. Whoever reads it checks it, so that Python callers see the same.

    Args:
        words: all that there are; called only to complete.
        name: stands for the value in `--help`.
    """

    def __init__(self, words: Callable[[], Iterable[str]], name: str = "WORD") -> None:
        self._words = words
        self.name = name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The words that begin with what is typed; of a list, its last word."""
        before, separator, last = incomplete.rpartition("=")
        return [
            CompletionItem(before + separator + word)
            for word in self._words()
            if word.startswith(last)
        ]


class ModelWord(Word):
    """A model's name or directory, of which a `~` at its beginning is the user's home."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word."""
        if not value:
            self.fail("it is empty; expected a directory or a name", param, ctx)
        return str(expanded(value)) if str(value).startswith("~") else str(value)


def _precisions() -> Iterable[str]:
    from iblip.export.precision import DTYPES

    return DTYPES


def _engines() -> Iterable[str]:
    from iblip.engines.kinds import KINDS

    return ["auto", *KINDS]


def _llm_engines() -> Iterable[str]:
    from iblip.serving.builder.options import LLM_ENGINES

    return LLM_ENGINES


def _models() -> Iterable[str]:
    from iblip.export.models.table import MODELS

    return [name for row in MODELS.values() for name in (row.hub, row.original) if name]


PRECISION = Word(_precisions)
ENGINE = Word(_engines)
LLM_ENGINE = Word(_llm_engines)
MODELS = ModelWord(_models, "MODEL")
