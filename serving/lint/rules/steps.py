"""Rules about an ensemble's steps: whether they fit the models that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from iblip.export.messages import did_you_mean
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository, value_name
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.rules.ensembles import SCHEDULING, step_line, steps_of
from iblip.serving.lint.tensor_shapes import fits, with_batch

SIDES = {"input_map": "input", "output_map": "output"}
"""A step's maps, and the kind of tensor that their keys name."""

LATEST = -1
"""The `model_version` of a step that uses the latest version."""


def _steps_with_models(model: Model, repository: Repository) -> Iterator[tuple[int, Any, Model]]:
    """The steps whose model exists and can be read, with that model."""
    for index, step in steps_of(model):
        inner = repository.models.get(step.model_name)
        if inner is not None and inner.config is not None:
            yield index, step, inner


def _check_step_model(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step in steps_of(model):
        if step.model_name not in repository.models:
            hint = did_you_mean(step.model_name, repository.models)
            line = model.line(SCHEDULING, "step", index, "model_name")
            yield Fault(f"there is no model {step.model_name!r}.{hint}", line)


def _check_step_version(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _steps_with_models(model, repository):
        present = [int(version.name) for version in inner.versions]
        if step.model_version != LATEST and present and step.model_version not in present:
            line = model.line(SCHEDULING, "step", index, "model_version")
            has = ", ".join(map(str, present))
            left_out = "" if step.model_version else ", the default if it is left out"
            message = f"{inner.name} has no version {step.model_version}{left_out}; it has {has}"
            yield Fault(message, line)


def _check_step_tensor(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _steps_with_models(model, repository):
        for side, kind in SIDES.items():
            names = [tensor.name for tensor in getattr(inner.config, kind)]
            for key in sorted(getattr(step, side).keys() - set(names)):
                has = ", ".join(names) or "none"
                line = step_line(model, index, side, key)
                yield Fault(f"{inner.name} has no {kind} {key!r}; it has {has}", line)


def _check_step_input_unmapped(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _steps_with_models(model, repository):
        for tensor in inner.config.input:
            if tensor.name not in step.input_map and not tensor.optional:
                message = f"the input {tensor.name!r} of {inner.name} is not mapped"
                yield Fault(message, step_line(model, index))


def _check_ensemble_max_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    most = model.config.max_batch_size
    for _, _, inner in _steps_with_models(model, repository):
        size = inner.config.max_batch_size
        if 0 < size < most:
            line = model.line("max_batch_size")
            yield Fault(
                f"max_batch_size is {most}, but that of its step {inner.name} is {size}", line
            )


@dataclass(frozen=True)
class _End:
    """A tensor of an ensemble as one model declares it."""

    title: str
    data_type: int
    dims: tuple[int, ...]
    batching: bool
    line: int

    def same_shape(self, other: _End) -> bool:
        """Whether the shapes fit as Triton compares them: with a batch axis, or both without."""
        own, others = (with_batch(end.dims, batching=end.batching) for end in (self, other))
        return fits(self.dims, other.dims) or fits(own, others)


def _ends(model: Model, repository: Repository) -> Iterator[tuple[str, _End, _End]]:
    """Pairs of declarations of each tensor of an ensemble, by name: the first, and each other."""
    first: dict[str, _End] = {}
    for name, end in _all_ends(model, repository):
        if first.setdefault(name, end) is not end:
            yield name, first[name], end


def _all_ends(model: Model, repository: Repository) -> Iterator[tuple[str, _End]]:
    for kind in SIDES.values() if model.ensemble else ():
        for index, tensor in enumerate(getattr(model.config, kind)):
            yield tensor.name, _end(model, f"the {kind}", tensor, model.line(kind, index))
    for index, step, inner in _steps_with_models(model, repository):
        for side, kind in SIDES.items():
            tensors = {tensor.name: tensor for tensor in getattr(inner.config, kind)}
            for key, name in sorted(getattr(step, side).items()):
                if key in tensors:
                    title = f"{inner.name}'s {kind} {key!r}"
                    yield name, _end(inner, title, tensors[key], step_line(model, index, side, key))


def _end(model: Model, title: str, tensor: Any, line: int) -> _End:
    shape = tensor.reshape.shape if model.ensemble and tensor.HasField("reshape") else tensor.dims
    return _End(title, tensor.data_type, tuple(shape), model.config.max_batch_size > 0, line)


def _check_step_data_type(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    named = partial(value_name, model_config_pb2.DataType)
    for name, first, other in _ends(model, repository):
        if first.data_type and other.data_type and first.data_type != other.data_type:
            types = named(other.data_type), named(first.data_type)
            message = f"{name!r} is {types[0]} as {other.title}, but {types[1]} as {first.title}"
            yield Fault(message, other.line)


def _check_step_shape(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, first, other in _ends(model, repository):
        if not first.same_shape(other):
            dims = list(other.dims), list(first.dims)
            message = (
                f"{name!r} has dims {dims[0]} as {other.title}, but {dims[1]} as {first.title}"
            )
            yield Fault(message, other.line)


RULES = (
    Rule(
        id="step-model",
        severity=Severity.ERROR,
        title="A step's model is in the repository.",
        why="The ensemble is not loaded.",
        mend="Use the name of the model's folder, or add the model.",
        server=Verdict.REFUSES,
        check=_check_step_model,
    ),
    Rule(
        id="step-version",
        severity=Severity.ERROR,
        title="The version of a step's model exists.",
        why="The ensemble is not loaded.",
        mend="Write model_version: -1 for the latest, or a version that has a folder.",
        server=Verdict.REFUSES,
        check=_check_step_version,
    ),
    Rule(
        id="step-tensor",
        severity=Severity.ERROR,
        title="The keys of a step's maps are inputs and outputs of its model.",
        why="The ensemble is not loaded.",
        mend="Use the model's name of the tensor as the key, and the ensemble's as the value.",
        server=Verdict.REFUSES,
        check=_check_step_tensor,
    ),
    Rule(
        id="step-input-unmapped",
        severity=Severity.ERROR,
        title="Every input of a step's model that is not optional is mapped.",
        why="The ensemble is not loaded.",
        mend="Add an input_map for it, or make it optional in the model's config.",
        server=Verdict.REFUSES,
        check=_check_step_input_unmapped,
    ),
    Rule(
        id="ensemble-max-batch",
        severity=Severity.ERROR,
        title="An ensemble's `max_batch_size` is at most that of each batching step.",
        why="The ensemble is not loaded.",
        mend="Lower it, or raise the step's as far as its engine allows.",
        server=Verdict.REFUSES,
        check=_check_ensemble_max_batch,
    ),
    Rule(
        id="step-data-type",
        severity=Severity.ERROR,
        title="A tensor has the same data type in every model.",
        why="The ensemble is not loaded.",
        mend="Correct the config that is wrong; Triton does not convert.",
        server=Verdict.REFUSES,
        check=_check_step_data_type,
    ),
    Rule(
        id="step-shape",
        severity=Severity.ERROR,
        title="A tensor has the same dims in every model; -1 fits any size.",
        why="The ensemble is not loaded.",
        mend="Correct the config that is wrong. If one model batches and another does not, the "
        "dims of the latter begin with the batch axis.",
        server=Verdict.REFUSES,
        check=_check_step_shape,
    ),
)
