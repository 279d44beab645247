"""Rules of an ensemble's steps: whether they fit the models that they name."""

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
from iblip.serving.lint.tensor_shapes import fits, full

SIDES = {"input_map": "input", "output_map": "output"}
"""A step's maps, and the model's tensors that their keys are."""

LATEST = -1
"""The `model_version` of a step that takes the latest."""


def _known(model: Model, repository: Repository) -> Iterator[tuple[int, Any, Model]]:
    """Steps whose model is there and can be read."""
    for index, step in steps_of(model):
        inner = repository.models.get(step.model_name)
        if inner is not None and inner.config is not None:
            yield index, step, inner


def _model(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step in steps_of(model):
        if step.model_name not in repository.models:
            hint = did_you_mean(step.model_name, repository.models)
            line = model.line(SCHEDULING, "step", index, "model_name")
            yield Fault(f"there is no model {step.model_name!r}.{hint}", line)


def _version(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _known(model, repository):
        there = [int(one.name) for one in inner.versions]
        if step.model_version != LATEST and there and step.model_version not in there:
            line = model.line(SCHEDULING, "step", index, "model_version")
            has = ", ".join(map(str, there))
            left_out = "" if step.model_version else ", which it is where it is left out"
            message = f"{inner.name} has no version {step.model_version}{left_out}; it has {has}"
            yield Fault(message, line)


def _names(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _known(model, repository):
        for side, kind in SIDES.items():
            names = [tensor.name for tensor in getattr(inner.config, kind)]
            for key in sorted(getattr(step, side).keys() - set(names)):
                has = ", ".join(names) or "none"
                line = step_line(model, index, side, key)
                yield Fault(f"{inner.name} has no {kind} {key!r}; it has {has}", line)


def _unmapped(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step, inner in _known(model, repository):
        for tensor in inner.config.input:
            if tensor.name not in step.input_map and not tensor.optional:
                message = f"the input {tensor.name!r} of {inner.name} is mapped to nothing"
                yield Fault(message, step_line(model, index))


def _batch(model: Model, repository: Repository) -> Iterator[Fault]:
    most = model.config.max_batch_size
    for _, _, inner in _known(model, repository):
        size = inner.config.max_batch_size
        if 0 < size < most:
            line = model.line("max_batch_size")
            yield Fault(f"max_batch_size is {most}; that of its step {inner.name} is {size}", line)


@dataclass(frozen=True)
class _End:
    """A tensor as one model has it."""

    title: str
    data_type: int
    dims: tuple[int, ...]
    batching: bool
    line: int

    def same_shape(self, other: _End) -> bool:
        """As Triton compares them: with the batch's axis, or without it on both sides."""
        one, two = (full(end.dims, batching=end.batching) for end in (self, other))
        return fits(self.dims, other.dims) or fits(one, two)


def _ends(model: Model, repository: Repository) -> Iterator[tuple[str, _End, _End]]:
    """Every tensor of an ensemble by name: as who has it first has it, and as another has it."""
    first: dict[str, _End] = {}
    for name, end in _all_ends(model, repository):
        if first.setdefault(name, end) is not end:
            yield name, first[name], end


def _all_ends(model: Model, repository: Repository) -> Iterator[tuple[str, _End]]:
    for kind in SIDES.values() if model.ensemble else ():
        for index, tensor in enumerate(getattr(model.config, kind)):
            yield tensor.name, _end(model, f"the {kind}", tensor, model.line(kind, index))
    for index, step, inner in _known(model, repository):
        for side, kind in SIDES.items():
            tensors = {tensor.name: tensor for tensor in getattr(inner.config, kind)}
            for key, name in sorted(getattr(step, side).items()):
                if key in tensors:
                    title = f"{inner.name}'s {kind} {key!r}"
                    yield name, _end(inner, title, tensors[key], step_line(model, index, side, key))


def _end(model: Model, title: str, tensor: Any, line: int) -> _End:
    shape = tensor.reshape.shape if model.ensemble and tensor.HasField("reshape") else tensor.dims
    return _End(title, tensor.data_type, tuple(shape), model.config.max_batch_size > 0, line)


def _types(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    named = partial(value_name, model_config_pb2.DataType)
    for name, one, other in _ends(model, repository):
        if one.data_type and other.data_type and one.data_type != other.data_type:
            found, wanted = named(other.data_type), named(one.data_type)
            message = f"{name!r} is {found} as {other.title}, and {wanted} as {one.title}"
            yield Fault(message, other.line)


def _shapes(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, one, other in _ends(model, repository):
        if not one.same_shape(other):
            found, wanted = list(other.dims), list(one.dims)
            message = f"{name!r} has dims {found} as {other.title}, and {wanted} as {one.title}"
            yield Fault(message, other.line)


RULES = (
    Rule(
        id="step-model",
        severity=Severity.ERROR,
        title="A step's model is in the repository.",
        why="The ensemble is not loaded.",
        mend="Spell it as its folder is called, or add it.",
        server=Verdict.REFUSES,
        check=_model,
    ),
    Rule(
        id="step-version",
        severity=Severity.ERROR,
        title="A step's version of its model is there.",
        why="The ensemble is not loaded.",
        mend="Write model_version: -1, which is the latest, or a version that has a folder.",
        server=Verdict.REFUSES,
        check=_version,
    ),
    Rule(
        id="step-tensor",
        severity=Severity.ERROR,
        title="The keys of a step's maps are inputs and outputs of its model.",
        why="The ensemble is not loaded.",
        mend="The key is the model's name of the tensor, the value the ensemble's.",
        server=Verdict.REFUSES,
        check=_names,
    ),
    Rule(
        id="step-input-unmapped",
        severity=Severity.ERROR,
        title="Every input of a step's model that is not optional is mapped.",
        why="The ensemble is not loaded.",
        mend="Add an input_map for it, or make it optional in the model's config.",
        server=Verdict.REFUSES,
        check=_unmapped,
    ),
    Rule(
        id="ensemble-max-batch",
        severity=Severity.ERROR,
        title="An ensemble's `max_batch_size` is at most that of each step that batches.",
        why="The ensemble is not loaded.",
        mend="Lower it, or raise the step's as far as its engine allows.",
        server=Verdict.REFUSES,
        check=_batch,
    ),
    Rule(
        id="step-data-type",
        severity=Severity.ERROR,
        title="A tensor has one data type, wherever it comes by.",
        why="The ensemble is not loaded.",
        mend="Mend the config of the model that is wrong; Triton converts nothing.",
        server=Verdict.REFUSES,
        check=_types,
    ),
    Rule(
        id="step-shape",
        severity=Severity.ERROR,
        title="A tensor has the same dims, wherever it comes by; -1 fits all.",
        why="The ensemble is not loaded.",
        mend="Mend the config of the model that is wrong. Where one batches and another does not, "
        "the latter's dims have the batch's axis in front.",
        server=Verdict.REFUSES,
        check=_shapes,
    ),
)
