"""A model repository as rules see it: configs as messages and with their lines, and the files.

Reads what is there, whatever is wrong with it: a config that cannot be parsed is a model without a
message, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iblip.engines.hardware.containers import find_container
from iblip.export.artifact.manifest import MANIFEST, ComponentRecord, Manifest
from iblip.export.errors import InputError
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.text_format import Node, Step, odd_space, tree_of
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.repository.model_config import ModelConfig, backend_of

CONFIG = "config.pbtxt"

FILES: Mapping[str, str] = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "python": "model.py",
    "pytorch": "model.pt",
    "openvino": "model.xml",
}
"""What each backend looks for in a version's folder, unless `default_model_filename` names it."""

MARKS: Mapping[bytes, str] = {
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""What editors put at the head of a file, and of which encoding it tells."""

LONGEST = 240
"""Characters of protobuf's message that are shown: it has the whole line in it."""

LARGEST_VERSION = 2**63 - 1
"""Triton keeps versions in 64 bits, with a sign."""

_VERSION = re.compile(r"0|[1-9][0-9]*", re.ASCII)
"""Triton passes over what begins with a 0 and goes on."""


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        path: of the folder.
        config: `None` where there is none, or none that can be parsed.
        tree: the config's fields and their lines; empty where there is none.
        fault: why Triton has no `config`; of no line where there is no text either.
        damage: of a text that is not all UTF-8, where that begins.
    """

    path: Path
    config: ModelConfig
    tree: Node
    fault: Fault | None = None
    damage: Fault | None = None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """Of its config, there or not."""
        return self.path / CONFIG

    @cached_property
    def versions(self) -> tuple[Path, ...]:
        """The folders of its versions, in their order."""
        found = [one for one in self.folders if is_version(one.name)]
        return tuple(sorted(found, key=lambda one: int(one.name)))

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """Every folder in its own, by name; none where it is a link to nothing."""
        inside = self.path.iterdir() if self.path.is_dir() else ()
        return tuple(sorted(one for one in inside if one.is_dir()))

    @property
    def ensemble(self) -> bool:
        """Whether it is one, or means to be."""
        return "ensemble_scheduling" in self.tree.fields or self.backend == "ensemble"

    @property
    def backend(self) -> str:
        """The backend that runs it, told or found as Triton finds it; empty where it cannot be."""
        if self.config is None:
            return ""
        if self.config.platform == "ensemble":
            return "ensemble"
        told = backend_of(self.config)
        if told or self.config.platform:
            return told
        named = self.config.default_model_filename
        return self.guess({named} if named else None)

    def guess(self, names: set[str] | None = None) -> str:
        """The backend that Triton takes such files to be for; empty where it takes none.

        Args:
            names: of files; `None` is what the versions have.
        """
        if names is None:
            names = {path.name for folder in self.versions for path in folder.iterdir()}
        return next((backend for backend, name in FILES.items() if name in names), "")

    @property
    def decoupled(self) -> bool:
        """Whether its config says so."""
        return self.config is not None and self.config.model_transaction_policy.decoupled

    def line(self, *path: Step) -> int:
        """The line of a field, or of what is nearest above it."""
        return self.tree.line_of(*path)


def value_name(enum: Any, number: int) -> str:
    """What Triton calls a value of an enumeration; its number where it knows none of that number.

    Args:
        enum: such as `model_config_pb2.DataType`.
        number: of the value: a config may have any.
    """
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name)


def parameters_of(model: Model) -> dict[str, str]:
    """The parameters of its config."""
    if model.config is None:
        return {}
    return {name: one.string_value for name, one in model.config.parameters.items()}


def is_version(name: str) -> bool:
    """Whether Triton takes a folder of that name for a version, and opens it under its number."""
    return bool(_VERSION.fullmatch(name)) and int(name) <= LARGEST_VERSION


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server that a repository is for.

    Attributes:
        title: for people.
        backends: that it has.
        tensorrt: the version of its TensorRT; `None` where it has none, or none is known.
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
        OptionError: it is none of those that are known.
    """
    found = find_container(name)
    title = f"the container {found.tag}"
    return Server(title=title, backends=found.backends, tensorrt=found.tensorrt)


@dataclass(frozen=True)
class Repository:
    """A folder of models.

    Attributes:
        path: of the folder.
        models: by the names of their folders.
        directory: of the build that it belongs to; `None` where it is of another origin.
        manifest: of that build.
        server: that will run it.
    """

    path: Path
    models: Mapping[str, Model]
    directory: Path | None = None
    manifest: Manifest | None = None
    server: Server = PIP_SERVER

    def record(self, model: Model) -> ComponentRecord | None:
        """What the build says of a model that is one of its components."""
        return None if self.manifest is None else self.manifest.components.get(model.name)


def read_repository(directory: Path, server: Server = PIP_SERVER) -> Repository:
    """Reads a build directory, or any folder of models.

    Raises:
        InputError: there is no such directory, it is one model, it has none, or it cannot be read.
        BuildDirectoryError: it has a manifest that cannot be read.
    """
    if not directory.is_dir():
        raise InputError(
            f"there is no directory {directory}; wanted a build, or a folder of Triton models"
        )
    if (directory / CONFIG).is_file():
        above = directory.absolute().parent
        raise InputError(f"{directory} is one model; give the folder above it: {above}")
    build = next((one for one in _builds(directory) if (one / MANIFEST).is_file()), None)
    path = directory if build is None else build / REPOSITORY
    try:
        found = sorted(path.iterdir()) if path.is_dir() else []
        # Triton reads no model of a repository in which a link leads to nothing.
        models = {one.name: read_model(one) for one in found if one.is_dir() or not one.exists()}
        manifest = None if build is None else Manifest.read(build)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not models:
        raise InputError(f"{path} has no models: each is a folder with a {CONFIG}")
    return Repository(path, models, directory=build, manifest=manifest, server=server)


def _builds(directory: Path) -> list[Path]:
    above = directory.absolute().parent
    return [directory, *([above] if directory.absolute().name == REPOSITORY else [])]


def read_model(path: Path) -> Model:
    """Reads one folder of a repository."""
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    config_path = path / CONFIG
    try:
        raw = config_path.read_bytes()
    except OSError as error:
        return Model(path, None, Node(line=1), Fault(f"{CONFIG} cannot be read: {error.strerror}"))
    mark = next((mark for mark in MARKS if raw.startswith(mark)), None)
    if mark is not None:
        message = f"it begins with a byte order mark of {MARKS[mark]}; wanted UTF-8 without one"
        return Model(path, None, Node(line=1), Fault(message, line=1))
    text, damage = _decoded(raw)
    tree = tree_of(text)
    config = model_config_pb2.ModelConfig()
    try:
        # Fields that nobody knows have a rule of their own, and the others are still asked.
        text_format.Parse(text, config, allow_unknown_field=True)
    except text_format.ParseError as error:
        fault = Fault(_reason(str(error)), line=error.GetLine())
        return Model(path, None, tree, fault, damage)
    odd = odd_space(text)
    if odd is not None:
        line, character = odd
        message = f"there is U+{ord(character):04X} between words; wanted spaces, tabs or line ends"
        return Model(path, config, tree, Fault(message, line=line), damage)
    return Model(path, config, tree, damage=damage)


def _decoded(raw: bytes) -> tuple[str, Fault | None]:
    """A text, and where it is not UTF-8: Triton reads such a file all the same."""
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        byte, line = raw[error.start], raw.count(b"\n", 0, error.start) + 1
        return raw.decode(errors="replace"), Fault(f"the byte 0x{byte:02x} is no UTF-8", line=line)


def _reason(message: str) -> str:
    """What protobuf says of a text, less the place, and as much of its line as helps."""
    place, _, rest = message.partition(": ")
    words = " ".join((rest or place).split())
    return words if len(words) <= LONGEST else f"{words[:20]} … {words[20 - LONGEST :]}"
