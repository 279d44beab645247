"""The settings of a build that cost nothing to change, and a build with others in their place."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError
from iblip.serving.repository.assembling import COMPONENTS, REPOSITORY
from iblip.serving.repository.model_config import (
    ModelConfig,
    read_config,
    set_parameter,
    write_config,
)
from iblip.serving.repository.profiles import profiles_of
from iblip.serving.server.memory import available, memory_of_build
from iblip.serving.wire.names import MODEL

LONG_DELAY_US = 5000
"""Long enough to gather images where many arrive: builds have no delay."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What can be chosen of how a build is served.

    Attributes:
        slots: sequences that the language model runs at once.
        max_batch: largest batch of vision encoder and Q-Former, in images.
        queue_delay_us: how long an image waits for others to share its batch, in microseconds.
    """

    slots: int
    max_batch: int
    queue_delay_us: int

    def changes(self, other: Setting) -> dict[str, int]:
        """The fields in which it differs from another, with its own values."""
        names = [field.name for field in fields(self)]
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(other, n)}

    def text(self, other: Setting) -> str:
        """The difference from another in words."""
        changes = self.changes(other)
        return ", ".join(f"{name} {value}" for name, value in changes.items()) or "as it is"


def setting_of(directory: Path) -> Setting:
    """The setting that a build has, with what an operator has edited.

    Raises:
        BuildDirectoryError: it is not a build.
        OptionError: a config has a parameter that the server refuses.
        ServingError: a config cannot be read.
    """
    vision = read_config(_path(directory / REPOSITORY, COMPONENTS[0]))
    model = read_config(_path(directory / REPOSITORY, MODEL))
    return Setting(
        slots=_slots(model, Manifest.read(directory)),
        max_batch=vision.max_batch_size,
        queue_delay_us=vision.dynamic_batching.max_queue_delay_microseconds,
    )


def _slots(model: ModelConfig, manifest: Manifest) -> int:
    if "slots" not in model.parameters:  # as the server reads it
        return manifest.limits.slots
    text: str = model.parameters["slots"].string_value
    if not text.isdecimal() or not int(text):
        raise OptionError(f"slots is {text!r} in config.pbtxt; expected an integer, 1 or more")
    return int(text)


def candidates(own: Setting, manifest: Manifest) -> list[Setting]:
    """The settings to try: the build's own first, then others that differ from it in one respect.

    Engines that were built for some sizes get no larger batches.
    """
    records = [manifest.components[name].engine for name in COMPONENTS]
    batches = [own.max_batch // 2, own.max_batch * 2]
    if any(profiles_of(record) for record in records):
        batches.pop()
    others = [
        *(replace(own, slots=slots) for slots in (own.slots // 2, own.slots * 2, own.slots * 4)),
        *(replace(own, max_batch=batch) for batch in batches),
        *(replace(own, queue_delay_us=delay) for delay in (0, LONG_DELAY_US)),
    ]
    wanted = [other for other in others if other != own and other.slots and other.max_batch]
    return [own, *wanted]


def memory_when_full(directory: Path, manifest: Manifest, setting: Setting) -> int | None:
    """Bytes of memory when every slot is full; `None` where that is not known."""
    limits = replace(manifest.limits, slots=setting.slots)
    memory = memory_of_build(directory, replace(manifest, limits=limits))
    return None if memory is None else memory.most


def fits(memory: int | None) -> bool:
    """Whether this machine has so many bytes free, as far as is known."""
    free = available()
    return memory is None or free is None or memory <= free


@contextmanager
def build_with(directory: Path, setting: Setting) -> Iterator[Path]:
    """A build with another setting, which is removed afterwards; the build itself is not touched.

    Raises:
        OptionError: a config has a parameter that the server refuses.
        ServingError: a config cannot be read.
        OSError: the directory for temporary files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="iblip-tune-") as name:
        other = Path(name)
        for entry in directory.absolute().iterdir():
            if entry.name != REPOSITORY:
                (other / entry.name).symlink_to(entry)
        repository = other / REPOSITORY
        shutil.copytree(directory / REPOSITORY, repository, symlinks=True)
        _edit(repository, setting)
        yield other


def _edit(repository: Path, setting: Setting) -> None:
    model = read_config(_path(repository, MODEL))
    set_parameter(model, "slots", str(setting.slots))
    text: str = model.parameters["limits"].string_value
    try:
        limits = {**json.loads(text), "slots": setting.slots}
    except (TypeError, ValueError) as error:
        raise OptionError(f"limits is {text!r} in config.pbtxt; expected JSON") from error
    set_parameter(model, "limits", json.dumps(limits))
    write_config(model, _path(repository, MODEL))
    for name in COMPONENTS:
        config: ModelConfig = read_config(_path(repository, name))
        config.max_batch_size = setting.max_batch
        config.dynamic_batching.max_queue_delay_microseconds = setting.queue_delay_us
        write_config(config, _path(repository, name))


def _path(repository: Path, model: str) -> Path:
    return repository / model / "config.pbtxt"
