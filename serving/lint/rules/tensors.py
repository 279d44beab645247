"""Rules of a model's own inputs and outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from serving.lint.reading import Model, Repository
from serving.lint.rule import Fault, Rule, Severity, Verdict

SIDES = ("input", "output")


def tensors(model: Model) -> Iterator[tuple[str, int, Any]]:
    """Every input and output, with the name and the number that lead to it."""
    for side in SIDES:
        for index, tensor in enumerate(getattr(model.config, side)):
            yield side, index, tensor


def _sides(model: Model, repository: Repository) -> Iterator[Fault]:
    for side in SIDES:
        if not getattr(model.config, side):
            yield Fault(f"there is no {side}", line=1)


def _type(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.data_type:
            yield Fault(f"{side} {tensor.name!r} has no data_type", model.line(side, index))


def _dims(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        line = model.line(side, index, "dims")
        if not tensor.dims and not tensor.HasField("reshape"):
            yield Fault(f"{side} {tensor.name!r} has no dims", line)
        wrong = [size for size in tensor.dims if size == 0 or size < -1]
        if wrong:
            yield Fault(f"{side} {tensor.name!r} has the size {wrong[0]}; wanted 1 or more", line)


def _twice(model: Model, repository: Repository) -> Iterator[Fault]:
    for side in SIDES:
        counts = Counter(tensor.name for tensor in getattr(model.config, side))
        for index, tensor in enumerate(getattr(model.config, side)):
            counts[tensor.name] -= 1
            if counts[tensor.name] == 0:
                continue
            yield Fault(f"two {side}s are called {tensor.name!r}", model.line(side, index))


def _reshape(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.HasField("reshape"):
            continue
        dims, shape = list(tensor.dims), list(tensor.reshape.shape)
        same = dims.count(-1) == shape.count(-1) and (
            -1 in dims or math.prod(dims) == math.prod(shape)
        )
        if not same:
            line = model.line(side, index, "reshape")
            yield Fault(f"{side} {tensor.name!r} of {dims} is reshaped to {shape}", line)


RULES = (
    Rule(
        id="no-tensors",
        severity=Severity.WARNING,
        title="A model has inputs and outputs.",
        why="Nothing can be asked of it. Left out for auto-complete, they depend on the server.",
        mend="Write them.",
        server=Verdict.ACCEPTS,
        check=_sides,
    ),
    Rule(
        id="data-type-missing",
        severity=Severity.ERROR,
        title="A tensor has a data type.",
        why="The model is not loaded.",
        mend="Write its data_type.",
        server=Verdict.REFUSES,
        check=_type,
    ),
    Rule(
        id="dims",
        severity=Severity.ERROR,
        title="A tensor has dims, each 1 or more, or -1 where it varies.",
        why="The model is not loaded.",
        mend="Write its dims, without the batch axis where the model batches.",
        server=Verdict.REFUSES,
        check=_dims,
    ),
    Rule(
        id="same-name",
        severity=Severity.ERROR,
        title="Inputs differ in name, and outputs do.",
        why="Which of the two a request's tensor is for is not told.",
        mend="Take one out, or name it as the model does.",
        server=Verdict.ACCEPTS,
        check=_twice,
    ),
    Rule(
        id="reshape",
        severity=Severity.ERROR,
        title="A reshaped tensor keeps its number of elements.",
        why="The model is not loaded.",
        mend="Write a shape of as many elements as dims has.",
        server=Verdict.REFUSES,
        check=_reshape,
    ),
)
