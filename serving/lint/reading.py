"""A model repository as rules see it: its configs as messages and with their lines, and its files.

Reads what exists, whatever is wrong with it: a model whose config cannot be parsed has no message,
but a fault that says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iblip.engines.hardware.containers import find_container
from iblip.export.artifact.manifest import LANGUAGE_MODEL, MANIFEST, ComponentRecord, Manifest
from iblip.export.errors import InputError
from iblip.export.system.files import refuse_irregular
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.text_format import Node, Step, find_invalid_space, tree_of
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.repository.model_config import ModelConfig, backend_of
from iblip.serving.wire.names import MODEL

CONFIG = "config.pbtxt"

FILES: Mapping[str, str] = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "python": "model.py",
    "pytorch": "model.pt",
    "openvino": "model.xml",
}
"""The file that each backend opens in a version folder, unless `default_model_filename` is set."""

MARKS: Mapping[bytes, str] = {
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks that editors put at the start of a file, and their encodings."""

MAX_REASON = 240
"""Characters shown of protobuf's message, which contains the whole line."""

LARGEST_VERSION = 2**63 - 1
"""Triton stores versions as signed 64-bit integers."""

_VERSION = re.compile(r"0|[1-9][0-9]*", re.ASCII)
"""Triton skips names that begin with 0 and go on."""


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        path: of the folder.
        config: `None` if it is missing or cannot be parsed.
        tree: the config's fields and their lines; empty if there is none.
        fault: why Triton cannot read the config; without a line if the file cannot be read at all.
        damage: the first place of the text that is not UTF-8, if any.
    """

    path: Path
    config: ModelConfig
    tree: Node
    fault: Fault | None = None
    damage: Fault | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """Path of its config, whether or not the file exists."""
        return self.path / CONFIG

    @cached_property
    def versions(self) -> tuple[Path, ...]:
        """Its version folders, in ascending order."""
        versions = [folder for folder in self.folders if is_version(folder.name)]
        return tuple(sorted(versions, key=lambda folder: int(folder.name)))

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folders in it, sorted by name; none if it is a broken link."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        return tuple(sorted(entry for entry in entries if entry.is_dir()))

    @property
    def ensemble(self) -> bool:
        """Whether it is an ensemble, or meant to be one."""
        return "ensemble_scheduling" in self.tree.fields or self.backend == "ensemble"

    @property
    def backend(self) -> str:
        """The backend that runs it, as set or as Triton would guess it; empty if it cannot."""
        if self.config is None:
            return ""
        if self.config.platform == "ensemble":
            return "ensemble"
        backend = backend_of(self.config)
        if backend or self.config.platform:
            return backend
        named = self.config.default_model_filename
        return self.guess({named} if named else None)

    def guess(self, names: set[str] | None = None) -> str:
        """The backend that Triton would guess from file names; empty if it would guess none.

        Args:
            names: of files; `None` takes those in the version folders.
        """
        if names is None:
            names = {path.name for folder in self.versions for path in folder.iterdir()}
        return next((backend for backend, name in FILES.items() if name in names), "")

    @property
    def decoupled(self) -> bool:
        """Whether its config says that it is decoupled."""
        return self.config is not None and self.config.model_transaction_policy.decoupled

    def line(self, *path: Step) -> int:
        """The line of a field, or of the innermost field around it that exists."""
        return self.tree.line_of(*path)


def value_name(enum: Any, number: int) -> str:
    """Triton's name for a value of an enumeration; the number itself if Triton has no such value.

    Args:
        enum: such as `model_config_pb2.DataType`.
        number: of the value; a config may have any number.
    """
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name)


def parameters_of(model: Model) -> dict[str, str]:
    """The parameters in a model's config; empty without one."""
    if model.config is None:
        return {}
    return {name: value.string_value for name, value in model.config.parameters.items()}


def is_version(name: str) -> bool:
    """Whether Triton takes a folder of that name for a version and opens it by its number."""
    return bool(_VERSION.fullmatch(name)) and int(name) <= LARGEST_VERSION


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server that will run a repository.

    Attributes:
        title: for people.
        backends: names of those it has.
        tensorrt: version of its TensorRT; `None` if it has none, or it is not known.
    """

    title: str
    backends: tuple[str, ...]
    tensorrt: str | None = None


PIP_SERVER = Server(title="the server from PyPI (nvidia-pytriton)", backends=("python",))


def server_of_container(name: str) -> Server:
    """The server in one of NVIDIA's containers.

    Args:
        name: the container's tag, with or without the image's name before it.

    Raises:
        OptionError: the container is not a known one.
    """
    container = find_container(name)
    title = f"the container {container.tag}"
    return Server(title=title, backends=container.backends, tensorrt=container.tensorrt)


@dataclass(frozen=True)
class Repository:
    """A folder of models.

    Attributes:
        path: of the folder.
        models: by the name of their folder.
        directory: of the build that it belongs to; `None` if it is not part of a build.
        manifest: of that build.
        server: the one that will run it.
    """

    path: Path
    models: Mapping[str, Model]
    directory: Path | None = None
    manifest: Manifest | None = None
    server: Server = PIP_SERVER

    def record(self, model: Model) -> ComponentRecord | None:
        """The build's record of the component that a model runs; `None` where it runs none."""
        name = LANGUAGE_MODEL if model.name == MODEL else model.name
        return None if self.manifest is None else self.manifest.components.get(name)


def read_repository(directory: Path, server: Server = PIP_SERVER) -> Repository:
    """Reads a build directory, or any folder of models.

    Raises:
        InputError: there is no such directory, it is a single model, it has no models, or it cannot
            be read.
        BuildDirectoryError: it has a manifest that cannot be read.
    """
    if not directory.is_dir():
        raise InputError(
            f"there is no directory {directory}; expected a build, or a folder of Triton models"
        )
    if (directory / CONFIG).is_file():
        above = directory.absolute().parent
        raise InputError(f"{directory} is a single model; give the folder above it: {above}")
    candidates = _possible_builds(directory)
    build = next((path for path in candidates if (path / MANIFEST).is_file()), None)
    path = directory if build is None else build / REPOSITORY
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else []
        # Triton reads no model of a repository that has a broken link.
        folders = [entry for entry in entries if entry.is_dir() or not entry.exists()]
        models = {folder.name: read_model(folder) for folder in folders}
        manifest = None if build is None else Manifest.read(build)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not models:
        raise InputError(f"{path} has no models: each is a folder with a {CONFIG}")
    return Repository(path, models, directory=build, manifest=manifest, server=server)


def _possible_builds(directory: Path) -> list[Path]:
    above = directory.absolute().parent
    return [directory, *([above] if directory.absolute().name == REPOSITORY else [])]


def read_model(path: Path) -> Model:
    """Reads one folder of a repository."""
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    config_path = path / CONFIG
    try:
        refuse_irregular(config_path)
        raw = config_path.read_bytes()
    except OSError as error:
        return Model(path, None, Node(line=1), Fault(f"{CONFIG} cannot be read: {error.strerror}"))
    mark = next((mark for mark in MARKS if raw.startswith(mark)), None)
    if mark is not None:
        message = f"it begins with a byte order mark of {MARKS[mark]}; expected UTF-8 without one"
        return Model(path, None, Node(line=1), Fault(message, line=1))
    text, damage = _decode(raw)
    try:
        tree = tree_of(text)
    except RecursionError:
        return Model(path, None, Node(line=1), Fault("it is nested too deeply", line=1), damage)
    config = model_config_pb2.ModelConfig()
    try:
        # Unknown fields have a rule of their own; the other rules still apply.
        text_format.Parse(text, config, allow_unknown_field=True)
    except text_format.ParseError as error:
        fault = Fault(_reason(str(error)), line=error.GetLine())
        return Model(path, None, tree, fault, damage)
    except (RecursionError, ValueError) as error:  # protobuf's own, without a line
        return Model(path, None, tree, Fault(_reason(str(error)), line=1), damage)
    invalid = find_invalid_space(text)
    if invalid is not None:
        line, character = invalid
        message = (
            f"there is U+{ord(character):04X} between words; expected spaces, tabs or line ends"
        )
        return Model(path, config, tree, Fault(message, line=line), damage)
    return Model(path, config, tree, damage=damage)


def _decode(raw: bytes) -> tuple[str, Fault | None]:
    """A text, and the first place that is not UTF-8; Triton reads such a file all the same."""
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        byte, line = raw[error.start], raw.count(b"\n", 0, error.start) + 1
        return raw.decode(errors="replace"), Fault(f"the byte 0x{byte:02x} is not UTF-8", line=line)


def _reason(message: str) -> str:
    """protobuf's message about a text, without the place and with only part of the line."""
    place, _, rest = message.partition(": ")
    words = " ".join((rest or place).split())
    return words if len(words) <= MAX_REASON else f"{words[:20]} … {words[20 - MAX_REASON :]}"
