"""Rules of a model's own inputs and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository
from iblip.serving.lint.rule import Rule, Severity, Verdict

SIDES = ("input", "output")

IMAGE_DIMS = 3
"""Height, width and channels, in either order."""


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
        line = model.line(side, index, "reshape")
        if any(size == 0 or size < -1 for size in shape):
            yield Fault(f"{side} {tensor.name!r} is reshaped to {shape}; wanted 1 or more", line)
        elif _products(dims) != _products(shape):
            yield Fault(f"{side} {tensor.name!r} of {dims} is reshaped to {shape}", line)
        elif not shape and model.config.max_batch_size == 0:
            yield Fault(f"{side} {tensor.name!r} is reshaped to no dims, without a batch", line)


def _products(dims: Sequence[int]) -> list[int]:
    """Elements before, between and after the sizes that vary, each of which stays where it is."""
    products = [1]
    for size in dims:
        if size == -1:
            products.append(1)
        else:
            products[-1] *= size
    return products


def _format(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, tensor in enumerate(model.config.input):
        dims = list(tensor.dims)
        if tensor.format and len(dims) != IMAGE_DIMS:
            message = f"input {tensor.name!r} has the format of an image, and dims {dims}"
            yield Fault(message, model.line("input", index, "format"))


def _shape_tensor(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if tensor.is_shape_tensor and model.backend != "tensorrt":
            line = model.line(side, index, "is_shape_tensor")
            yield Fault(f"is_shape_tensor on a model of the backend {model.backend!r}", line)


def _labels(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, tensor in enumerate(model.config.output):
        if tensor.label_filename and not (model.path / tensor.label_filename).is_file():
            message = f"there is no {tensor.label_filename} in {model.name}"
            yield Fault(message, model.line("output", index, "label_filename"))


def _nameless(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.name:
            yield Fault(f"{side} {index} has no name", model.line(side, index))


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
        id="tensor-nameless",
        severity=Severity.ERROR,
        title="A tensor has a name.",
        why="The model is not loaded.",
        mend="Write its name, as the model has it.",
        server=Verdict.REFUSES,
        check=_nameless,
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
        title="A reshaped tensor keeps its elements, and the order of sizes that vary.",
        why="The model is not loaded.",
        mend="Write a shape of as many elements as dims has, before, between and after each -1; "
        "an empty one only where the model batches.",
        server=Verdict.REFUSES,
        check=_reshape,
    ),
    Rule(
        id="image-format",
        severity=Severity.ERROR,
        title="An input in FORMAT_NHWC or FORMAT_NCHW has three dims.",
        why="The model is not loaded.",
        mend="Write the three, without the batch; or take format out, which nothing here reads.",
        server=Verdict.REFUSES,
        check=_format,
    ),
    Rule(
        id="shape-tensor",
        severity=Severity.ERROR,
        title="Only TensorRT models have shape tensors.",
        why="The model is not loaded.",
        mend="Take is_shape_tensor out.",
        server=Verdict.REFUSES,
        check=_shape_tensor,
    ),
    Rule(
        id="label-file",
        severity=Severity.ERROR,
        title="The file of an output's labels is in the model's folder.",
        why="The model is not loaded.",
        mend="Put it there, or take label_filename out.",
        server=Verdict.REFUSES,
        check=_labels,
    ),
)
