"""Python models of older builds: what they import that is gone, what they do not know yet.

A build keeps the `model.py` of each Triton model as it was when the build was made. Before this
project was one package, they imported `serving` and `engines`, which have become `iblip.serving`
and `iblip.engines`.
"""

from __future__ import annotations

import re
from pathlib import Path

from iblip.export.artifact.manifest import MANIFEST
from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.system.json_text import parse_json

_OLD_IMPORT = re.compile(r"^from serving\.(steps|wire)\b", re.MULTILINE)


def is_outdated(model: Path) -> bool:
    """Whether a `model.py` imports this project under its old names; not if it cannot be read."""
    return _OLD_IMPORT.search(_text(model)) is not None


def outdated_models(repository: Path) -> tuple[str, ...]:
    """The models of a repository that have such a file, by name."""
    files = repository.glob("*/*/model.py")
    return tuple(sorted({path.parts[-3] for path in files if is_outdated(path)}))


def models_without_vision_cache(repository: Path) -> tuple[str, ...]:
    """The models that answer callers and were written before the vision cache was, by name."""
    texts = {path.parts[-3]: _text(path) for path in repository.glob("*/*/model.py")}
    fronts = (name for name, text in texts.items() if "serving.steps.answering" in text)
    return tuple(sorted(name for name in fronts if "vision_cache" not in texts[name]))


def _text(model: Path) -> str:
    try:
        return model.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def how_to_rebuild(repository: Path) -> str:
    """A sentence with the command that makes the build of a repository again."""
    directory = repository.absolute().parent
    try:
        data = parse_json((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "Make the build again that it belongs to."
    return f"Build it again, with its other options: `{rebuild_command(directory, data)}`."
