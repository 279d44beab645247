"""A model repository as rules see it: configs as messages and with their lines, and the files.

Reads what is there, whatever is wrong with it: a config that cannot be parsed is a model without a
message, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engines.containers import find_container
from export.errors import InputError
from export.manifest import MANIFEST, ComponentRecord, Manifest
from serving.lint.rule import Fault
from serving.lint.text_format import Node, Step, tree_of
from serving.model_config import ModelConfig, backend_of
from serving.repository import REPOSITORY

CONFIG = "config.pbtxt"

FILES: Mapping[str, str] = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "python": "model.py",
    "pytorch": "model.pt",
    "openvino": "model.xml",
}
"""What each backend looks for in a version's folder, unless `default_model_filename` names it."""


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        path: of the folder.
        config: `None` where there is none, or none that can be parsed.
        tree: the config's fields and their lines; empty where there is none.
        fault: why there is no `config`.
    """

    path: Path
    config: ModelConfig
    tree: Node
    fault: Fault | None = None

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
        found = [one for one in self.path.iterdir() if one.name.isdigit() and one.is_dir()]
        return tuple(sorted(found, key=lambda one: int(one.name)))

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
        there = {path.name for folder in self.versions for path in folder.iterdir()}
        wanted = {named} if named else there
        return next((backend for backend, name in FILES.items() if name in wanted), "")

    @property
    def decoupled(self) -> bool:
        """Whether its config says so."""
        return self.config is not None and self.config.model_transaction_policy.decoupled

    def line(self, *path: Step) -> int:
        """The line of a field, or of what is nearest above it."""
        return self.tree.line_of(*path)


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
        InputError: there is no such directory, it is one model, or it has none.
        BuildDirectoryError: it has a manifest that cannot be read.
    """
    if not directory.is_dir():
        raise InputError(
            f"there is no directory {directory}; wanted a build, or a folder of Triton models"
        )
    if (directory / CONFIG).is_file():
        raise InputError(f"{directory} is one model; give the folder above it: {directory.parent}")
    build = next((one for one in _builds(directory) if (one / MANIFEST).is_file()), None)
    path = directory if build is None else build / REPOSITORY
    names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    models = {name: read_model(path / name) for name in names if (path / name).is_dir()}
    if not models:
        raise InputError(f"{path} has no models: each is a folder with a {CONFIG}")
    manifest = None if build is None else Manifest.read(build)
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
        text = config_path.read_text(encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        return Model(path, None, Node(line=1), Fault(f"{CONFIG} cannot be read: {reason}"))
    except UnicodeDecodeError as error:
        return Model(path, None, Node(line=1), Fault(f"{CONFIG} is not UTF-8 text: {error}"))
    tree = tree_of(text)
    config = model_config_pb2.ModelConfig()
    try:
        # Fields that nobody knows have a rule of their own, and the others are still asked.
        text_format.Parse(text, config, allow_unknown_field=True)
    except text_format.ParseError as error:
        message = str(error).partition(": ")[2].strip() or str(error)
        return Model(path, None, tree, Fault(message, line=error.GetLine()))
    return Model(path, config, tree)
