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
    """Every input and output, with its side and its index there."""
    for side in SIDES:
        for index, tensor in enumerate(getattr(model.config, side)):
            yield side, index, tensor


def _check_no_tensors(model: Model, repository: Repository) -> Iterator[Fault]:
    for side in SIDES:
        if not getattr(model.config, side):
            yield Fault(f"the model has no {side}", line=1)


def _check_data_type_missing(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.data_type:
            yield Fault(f"{side} {tensor.name!r} has no data_type", model.line(side, index))


def _check_dims(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        line = model.line(side, index, "dims")
        if not tensor.dims and not tensor.HasField("reshape"):
            yield Fault(f"{side} {tensor.name!r} has no dims", line)
        wrong = [size for size in tensor.dims if size == 0 or size < -1]
        if wrong:
            yield Fault(
                f"{side} {tensor.name!r} has the size {wrong[0]}; expected -1, or 1 or more", line
            )


def _check_same_name(model: Model, repository: Repository) -> Iterator[Fault]:
    for side in SIDES:
        counts = Counter(tensor.name for tensor in getattr(model.config, side))
        for index, tensor in enumerate(getattr(model.config, side)):
            counts[tensor.name] -= 1
            if counts[tensor.name] == 0:
                continue
            yield Fault(f"two {side}s are called {tensor.name!r}", model.line(side, index))


def _check_reshape(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.HasField("reshape"):
            continue
        dims, shape = list(tensor.dims), list(tensor.reshape.shape)
        line = model.line(side, index, "reshape")
        if any(size == 0 or size < -1 for size in shape):
            yield Fault(
                f"{side} {tensor.name!r} is reshaped to {shape}; expected sizes of 1 or more", line
            )
        elif _element_counts(dims) != _element_counts(shape):
            message = f"{side} {tensor.name!r} of dims {dims} is reshaped to {shape}, which differs"
            yield Fault(message, line)
        elif not shape and model.config.max_batch_size == 0:
            yield Fault(
                f"{side} {tensor.name!r} is reshaped to no dims in a model that does not batch",
                line,
            )


def _element_counts(dims: Sequence[int]) -> list[int]:
    """Numbers of elements before, between and after the variable sizes, which stay in place."""
    counts = [1]
    for size in dims:
        if size == -1:
            counts.append(1)
        else:
            counts[-1] *= size
    return counts


def _check_image_format(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, tensor in enumerate(model.config.input):
        dims = list(tensor.dims)
        if tensor.format and len(dims) != IMAGE_DIMS:
            message = f"input {tensor.name!r} has an image format, but dims {dims}"
            yield Fault(message, model.line("input", index, "format"))


def _check_shape_tensor(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if tensor.is_shape_tensor and model.backend != "tensorrt":
            line = model.line(side, index, "is_shape_tensor")
            yield Fault(f"is_shape_tensor on a model of the backend {model.backend!r}", line)


def _check_label_file(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, tensor in enumerate(model.config.output):
        if tensor.label_filename and not (model.path / tensor.label_filename).is_file():
            message = f"there is no {tensor.label_filename} in {model.name}"
            yield Fault(message, model.line("output", index, "label_filename"))


def _check_tensor_nameless(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor in tensors(model):
        if not tensor.name:
            yield Fault(f"{side} {index} has no name", model.line(side, index))


RULES = (
    Rule(
        id="no-tensors",
        severity=Severity.WARNING,
        title="A model has inputs and outputs.",
        why="Without them it takes no requests; left to auto-complete, they depend on the server.",
        mend="Declare them.",
        server=Verdict.ACCEPTS,
        check=_check_no_tensors,
    ),
    Rule(
        id="tensor-nameless",
        severity=Severity.ERROR,
        title="A tensor has a name.",
        why="The model is not loaded.",
        mend="Add its name, as in the model.",
        server=Verdict.REFUSES,
        check=_check_tensor_nameless,
    ),
    Rule(
        id="data-type-missing",
        severity=Severity.ERROR,
        title="A tensor has a data type.",
        why="The model is not loaded.",
        mend="Add its data_type.",
        server=Verdict.REFUSES,
        check=_check_data_type_missing,
    ),
    Rule(
        id="dims",
        severity=Severity.ERROR,
        title="A tensor has dims, each 1 or more, or -1 if variable.",
        why="The model is not loaded.",
        mend="Add its dims, without the batch axis if the model batches.",
        server=Verdict.REFUSES,
        check=_check_dims,
    ),
    Rule(
        id="same-name",
        severity=Severity.ERROR,
        title="No two inputs have the same name, and no two outputs.",
        why="It is undefined which of the two a request's tensor belongs to.",
        mend="Remove one, or name it as the model does.",
        server=Verdict.ACCEPTS,
        check=_check_same_name,
    ),
    Rule(
        id="reshape",
        severity=Severity.ERROR,
        title="A reshape keeps the elements and the order of variable sizes.",
        why="The model is not loaded.",
        mend="Write a shape with as many elements as dims before, between and after each -1; an "
        "empty shape only if the model batches.",
        server=Verdict.REFUSES,
        check=_check_reshape,
    ),
    Rule(
        id="image-format",
        severity=Severity.ERROR,
        title="An input in FORMAT_NHWC or FORMAT_NCHW has three dims.",
        why="The model is not loaded.",
        mend="Write three dims, without the batch, or remove format, which no backend here reads.",
        server=Verdict.REFUSES,
        check=_check_image_format,
    ),
    Rule(
        id="shape-tensor",
        severity=Severity.ERROR,
        title="Only TensorRT models have shape tensors.",
        why="The model is not loaded.",
        mend="Remove is_shape_tensor.",
        server=Verdict.REFUSES,
        check=_check_shape_tensor,
    ),
    Rule(
        id="label-file",
        severity=Severity.ERROR,
        title="The label file of an output is in the model's folder.",
        why="The model is not loaded.",
        mend="Put it there, or remove label_filename.",
        server=Verdict.REFUSES,
        check=_check_label_file,
    ),
)
