"""From engines to a Triton model repository: `BUILD/model_repository`, ready to serve.

The models' own files live in the package `model_repository`; here they are copied, their configs
get the build's facts, and plans are linked. Every path that is written is relative to the model's
own folder, so a build can be moved, or mounted elsewhere, whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from export.contract import TensorSpec
from export.errors import ServingError
from export.manifest import Manifest
from serving.model_config import (
    ModelConfig,
    drop_tensors,
    read_config,
    set_engine,
    set_parameter,
    set_tensors,
    write_config,
)
from serving.wire import ACCEPTED_PIXELS, ENSEMBLE, LANGUAGE_MODEL, PIXELS, UNARY, ServerContract

logger = logging.getLogger(__name__)

REPOSITORY = "model_repository"
"""The repository's folder in a build directory."""

COMPONENTS = ("vision_encoder", "qformer")
"""The models that run one graph each, in Triton's own batches."""

INSTRUCTION = frozenset({"qformer_input_ids", "qformer_attention_mask"})
"""The tensors that only an instruction-aware Q-Former has."""

OPERATORS = ("slots", "max_length", "queue")
"""The limits that an operator may set anew, as parameters of the language model. The most images of
a request are not among them: engines are built for so many."""

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
    directory: Path, manifest: Manifest, *, max_batch: int = 8
) -> ModelRepository:
    """Assembles `directory/model_repository` for the engines that the manifest records.

    Args:
        directory: the build, or one in the making; what is there of a repository is replaced.
        manifest: of that build.
        max_batch: the largest batch of one run of a component, in rows; a TensorRT plan's own
            profile must reach it.

    Raises:
        ServingError: a config of `model_repository/` is damaged, or an engine's plan is missing.
        OSError: the directory cannot be written.
    """
    target = directory / REPOSITORY
    if target.exists():
        shutil.rmtree(target)
    specs = _tensors(manifest)
    names = ["tokenizer", *COMPONENTS, LANGUAGE_MODEL, ENSEMBLE, UNARY]
    with as_file(files("model_repository")) as source:
        for name in names:
            config = read_config(source / name / "config.pbtxt")
            _fill(config, manifest, specs, max_batch)
            (target / name / "1").mkdir(parents=True)
            write_config(config, target / name / "config.pbtxt")
            if config.backend == "python":
                shutil.copyfile(source / name / "1" / "model.py", target / name / "1" / "model.py")
            elif config.platform == "tensorrt_plan":
                _link_plan(directory, manifest, name)
    logger.info("assembled %s: %s", target, ", ".join(names))
    return ModelRepository(path=target, models=tuple(names))


def _fill(
    config: ModelConfig, manifest: Manifest, specs: Mapping[str, TensorSpec], max_batch: int
) -> None:
    if config.name in COMPONENTS:
        kind = manifest.components[config.name].engine.kind
        set_engine(config, kind, max_batch=max_batch)
        set_parameter(config, "component", config.name)
    if not specs.keys() >= INSTRUCTION:
        drop_tensors(config, set(INSTRUCTION))
    set_tensors(config, specs)
    if config.backend == "python":
        set_parameter(config, "build", TO_BUILD)
    if config.name == LANGUAGE_MODEL:
        for name in OPERATORS:
            set_parameter(config, name, str(getattr(manifest.limits, name)))
    if config.name == ENSEMBLE:
        for name, value in ServerContract.from_manifest(manifest).to_parameters().items():
            set_parameter(config, name, value)


def _tensors(manifest: Manifest) -> dict[str, TensorSpec]:
    """Every tensor that passes between models, by name, as the graphs' contracts have it."""
    contracts = [manifest.components[name].graphs["model"].contract for name in COMPONENTS]
    specs = [spec for contract in contracts for spec in (*contract.inputs, *contract.outputs)]
    found = {spec.name: spec for spec in specs}
    return {**found, ACCEPTED_PIXELS: found[PIXELS]}


def _link_plan(directory: Path, manifest: Manifest, component: str) -> None:
    plan = directory / manifest.components[component].engine.files["model"]
    if not plan.is_file():
        raise ServingError(f"the engine of {component} is missing: {plan}. Build it again.")
    link = directory / REPOSITORY / component / "1" / "model.plan"
    # Relative, and the build moves whole: the link holds wherever the build is mounted.
    link.symlink_to(os.path.relpath(plan, link.parent))
