"""From engines to a Triton model repository: `BUILD/model_repository`, ready to serve.

The models' own files live in the package `model_repository`; here they are copied, their configs
get the build's facts, and plans are linked. Every path that is written is relative to the model's
own folder, so a build can be moved, or mounted elsewhere, whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.manifest import LANGUAGE_MODEL, Manifest
from iblip.export.errors import ServingError
from iblip.serving.repository.model_config import (
    ModelConfig,
    add_row_axis,
    backend_of,
    drop_tensors,
    read_config,
    set_parameter,
    set_tensors,
    write_config,
)
from iblip.serving.repository.native import (
    AUTO,
    backend_for,
    fill_native,
    place_instances,
    set_engine,
)
from iblip.serving.server.installation import Installation
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.names import CHAIN, MODEL, UNARY

logger = logging.getLogger(__name__)

REPOSITORY = "model_repository"
"""The repository's folder in a build directory."""

COMPONENTS = ("vision_encoder", "qformer")
"""The models that run one graph each, in Triton's own batches."""

INSTRUCTION = frozenset({"qformer_input_ids", "qformer_attention_mask"})
"""The tensors that only an instruction-aware Q-Former has."""

OPERATORS = ("slots", "max_length", "queue", "prefix_cache")
"""The limits that an operator may set anew, as parameters of the language model. The most images of
a request are not among them: engines are built for so many."""

VERSION = "1"
"""The folder of each model's one version."""

TO_BUILD = "../.."
"""From a model's folder to its build directory."""


@dataclass(frozen=True, kw_only=True)
class ModelRepository:
    """An assembled repository.

    Attributes:
        path: what `tritonserver --model-repository` is given.
        models: the names of its models.
    """

    path: Path
    models: tuple[str, ...]


def repository_from_engines(
    directory: Path, manifest: Manifest, *, max_batch: int = 8, backend: str = AUTO
) -> ModelRepository:
    """Assembles `directory/model_repository` for the engines that the manifest records.

    Args:
        directory: the build, or one in the making; what is there of a repository is replaced.
        manifest: of that build.
        max_batch: the largest batch of one run of a component, in rows; a TensorRT plan's own
            profile must reach it.
        backend: one of `serving.repository.native.CHOICES`: what of Triton carries the components'
            engines.

    Raises:
        OptionError: Triton has no backend of its own for an engine.
        ServingError: a config of `model_repository/` is damaged, an engine's file is missing, or
            its profiles do not reach `max_batch`.
        OSError: the directory cannot be written.
    """
    target = directory / REPOSITORY
    if target.exists():
        shutil.rmtree(target)
    specs = _tensors(manifest)
    names = [*COMPONENTS, CHAIN, MODEL, UNARY]
    with as_file(files("iblip.model_repository")) as source:
        for name in names:
            config = read_config(source / name / "config.pbtxt")
            _fill(config, manifest, specs, max_batch, backend)
            (target / name).mkdir(parents=True)
            write_config(config, target / name / "config.pbtxt")
            _add_version(config, source / name / VERSION, directory, manifest)
    logger.info("assembled %s: %s", target, ", ".join(names))
    return ModelRepository(path=target, models=tuple(names))


def check_backends(directory: Path, server: Installation) -> None:
    """Refuses a server that lacks the backend of one of a build's models, before it is started.

    Args:
        directory: of the build.
        server: that is to serve it; where its backends cannot be found, nothing is said.

    Raises:
        ServingError: naming the models and what else serves them; or a config cannot be read.
    """
    has = (*server.backend_names, "ensemble")
    missing = {
        path.parent.name: backend
        for path in sorted((directory / REPOSITORY).glob("*/config.pbtxt"))
        if (backend := backend_of(read_config(path))) not in has
    }
    if server.backend_names and missing:
        models = ", ".join(f"{model} ({backend})" for model, backend in missing.items())
        raise ServingError(
            f"{server.origin} lacks the backend of {models}; it has "
            f"{', '.join(server.backend_names)}. Serve the build in NVIDIA's container: "
            f"IBLIP_BUILD={directory.absolute()} docker compose -f deploy/compose.yaml up --build "
            "--wait. Or build it with --triton-backend python."
        )


def _fill(
    config: ModelConfig,
    manifest: Manifest,
    specs: Mapping[str, TensorSpec],
    max_batch: int,
    backend: str,
) -> None:
    record = manifest.components[config.name] if config.name in COMPONENTS else None
    if record is not None:
        backend = backend_for(record.engine.kind, backend)
        set_engine(config, record.engine, backend=backend, max_batch=max_batch)
    if not specs.keys() >= INSTRUCTION:
        drop_tensors(config, set(INSTRUCTION))
    set_tensors(config, specs)
    if record is not None:
        fill_native(config, record.engine, record.graphs["model"].contract, backend)
    if config.backend == "python":
        set_parameter(config, "directory", TO_BUILD)
        if record is not None:
            set_parameter(config, "component", config.name)
            add_row_axis(config)
    if config.name == MODEL:
        if LANGUAGE_MODEL in manifest.components:
            kind = manifest.components[LANGUAGE_MODEL].engine.kind
            place_instances(config, kind, alone=True)
        for name in OPERATORS:
            set_parameter(config, name, json.dumps(getattr(manifest.limits, name)))
        for name, value in ServerContract.from_manifest(manifest).to_parameters().items():
            set_parameter(config, name, value)


def _tensors(manifest: Manifest) -> dict[str, TensorSpec]:
    """Every tensor that passes between models, by name, as the graphs' contracts have it."""
    contracts = [manifest.components[name].graphs["model"].contract for name in COMPONENTS]
    specs = [spec for contract in contracts for spec in (*contract.inputs, *contract.outputs)]
    return {spec.name: spec for spec in specs}


def _add_version(config: ModelConfig, source: Path, directory: Path, manifest: Manifest) -> None:
    """What the model's backend opens, under the name by which it does."""
    version = directory / REPOSITORY / config.name / VERSION
    if config.backend == "onnxruntime":
        # The folder itself: ONNX Runtime reads weights only where the graph really lies.
        _link(version, _engine_file(directory, manifest, config.name).parent)
        return
    version.mkdir()
    if config.backend == "python":
        shutil.copyfile(source / "model.py", version / "model.py")
    elif config.platform == "tensorrt_plan":
        _link(version / "model.plan", _engine_file(directory, manifest, config.name))


def _engine_file(directory: Path, manifest: Manifest, component: str) -> Path:
    path = directory / manifest.components[component].engine.files["model"]
    if not path.is_file():
        raise ServingError(f"the engine of {component} is missing: {path}. Build it again.")
    return path


def _link(link: Path, target: Path) -> None:
    # Relative, and the build moves whole: the link holds wherever the build is mounted.
    link.symlink_to(os.path.relpath(target, link.parent))
