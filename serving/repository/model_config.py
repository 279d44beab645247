"""`config.pbtxt`: the policy that an operator wrote, with a build's facts filled in.

Configs are read into Triton's real `ModelConfig` message and written from it, in protobuf's text
format, so the server reads exactly what was meant. A config keeps what its author chose (batching,
queues, instances, cache, warm-up); what the engine decides is set from the contracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iblip.export.artifact.contract import TensorSpec
from iblip.export.errors import ServingError
from iblip.export.system.files import refuse_irregular
from iblip.export.system.installing import missing_package

ModelConfig = Any
"""`tritonclient.grpc.model_config_pb2.ModelConfig`, which has no types to check against."""

DATA_TYPES: Mapping[str, str] = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}
"""Triton's name for each dtype of a contract."""

PLATFORMS: Mapping[str, str] = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
    "pytorch_libtorch": "pytorch",
    "ensemble": "ensemble",
}
"""Triton's platforms, and the backend of each; the server itself runs ensembles."""

HEADER = """\
# Assembled by `iblip build` from model_repository/, where every line is explained.
# An operator may edit batching, queues, instances, cache and warm-up here, and the parameters
# `threads`, `slots`, `max_length`, `queue` and `image_…`; data types, sizes and other parameters
# state what the engine is.

"""


def check_configs_can_be_read() -> None:
    """Raises `MissingPackageError` where tritonclient, which knows Triton's configs, is missing."""
    if find_spec("tritonclient") is None:
        error = ModuleNotFoundError(name="tritonclient")
        raise missing_package(error, "Reading Triton's configs") or error


def read_config(path: Path) -> ModelConfig:
    """The message in a `config.pbtxt`.

    Raises:
        ServingError: it cannot be read, or is not a Triton model config (with line and column).
        MissingPackageError: tritonclient, which knows Triton's configs, is not installed.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    check_configs_can_be_read()
    from tritonclient.grpc import model_config_pb2

    try:
        refuse_irregular(path)
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except OSError as error:
        raise ServingError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{path} is not UTF-8: {error.reason}, at {error.start}") from error
    except (text_format.ParseError, RecursionError, ValueError) as error:
        raise ServingError(f"{path} is not a Triton model config: {error}") from error


def write_config(config: ModelConfig, path: Path) -> None:
    """Writes the message as a `config.pbtxt`. Triton needs `max_batch_size` even if it is 0."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config, as_utf8=True)
    if config.max_batch_size == 0:
        text += "max_batch_size: 0\n"
    path.write_text(HEADER + text, encoding="utf-8")


def backend_of(config: ModelConfig) -> str:
    """The backend that a config names directly or by its platform; empty if it names none."""
    return str(config.backend or PLATFORMS.get(config.platform, ""))


def set_parameter(config: ModelConfig, name: str, value: str) -> None:
    """Sets a parameter of the model; Triton's parameters are strings."""
    config.parameters[name].string_value = value


def set_tensors(config: ModelConfig, specs: Mapping[str, TensorSpec]) -> None:
    """Sets the data type and dims of every tensor in the config that has a spec.

    The first axis of a spec is the batch. It is left out if the model batches; otherwise it holds
    the images of one request. Inputs of warm-ups get the same, but keep their own size on dynamic
    axes.
    """
    batched = config.max_batch_size > 0
    for tensor in (*config.input, *config.output):
        if tensor.name in specs:
            spec = specs[tensor.name]
            tensor.data_type = data_type(spec)
            tensor.dims[:] = _dims(spec, batched=batched)
    for sample in config.model_warmup:
        for name in set(sample.inputs) & specs.keys():
            given = sample.inputs[name]
            given.data_type = data_type(specs[name])
            dims = _dims(specs[name], batched=batched)
            # zip stops at the shorter one if the ranks differ: then the contract's own sizes stay.
            old = [*given.dims, *([1] * len(dims))]
            given.dims[:] = [new if new > 0 else kept for new, kept in zip(dims, old, strict=False)]


def add_row_axis(config: ModelConfig) -> None:
    """Lets Triton hand each input over as `[batch, 1, ...]`, where clients send `[batch, ...]`.

    Triton 2.51 takes a request with a batch of 0, and leaves the 0 out of its shape. Its Python
    backend then takes the next axis for the batch, finds too many rows in the batch that the
    request shares, and refuses them all. With an axis of 1 there it counts as one row, and the
    model can refuse it alone.
    """
    for tensor in config.input:
        tensor.reshape.shape[:] = [1, *tensor.dims]


def drop_tensors(config: ModelConfig, names: set[str]) -> None:
    """Removes tensors from a config: from its inputs and outputs, its warm-ups and its steps."""
    for tensors in (config.input, config.output):
        _keep(tensors, lambda tensor: tensor.name not in names)
    for sample in config.model_warmup:
        for name in names & set(sample.inputs):
            del sample.inputs[name]
    for step in config.ensemble_scheduling.step:
        for tensor_map in (step.input_map, step.output_map):
            for name in names & set(tensor_map):
                del tensor_map[name]


def _keep(repeated: Any, condition: Any) -> None:
    kept = [item for item in repeated if condition(item)]
    del repeated[:]
    repeated.extend(kept)


def data_type(spec: TensorSpec) -> int:
    """Triton's number for the data type of a tensor."""
    from tritonclient.grpc import model_config_pb2

    return int(model_config_pb2.DataType.Value(DATA_TYPES[spec.dtype]))


def _dims(spec: TensorSpec, *, batched: bool) -> list[int]:
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.axes[1:]]
    return dims if batched else [-1, *dims]
