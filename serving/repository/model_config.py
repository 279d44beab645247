"""`config.pbtxt`: the policy that an operator wrote, with a build's facts filled in.

Read and written with protobuf's text format into Triton's real `ModelConfig` message, so that what
is written is what the server reads. A config keeps what its author chose (batching, queues,
instances, cache, warm-up); what the engine decides is set from the contracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iblip.export.artifact.contract import TensorSpec
from iblip.export.errors import ServingError

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
"""Triton's name of each dtype of a contract."""

PLATFORMS: Mapping[str, str] = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
    "pytorch_libtorch": "pytorch",
    "ensemble": "ensemble",
}
"""Each platform that Triton knows, and its backend; an ensemble is the server's own."""

HEADER = """\
# Assembled by `export build` from model_repository/, where every line is explained.
# An operator may edit batching, queues, instances, cache and warm-up here, and the parameters
# `threads`, `slots`, `max_length` and `queue`; data types, sizes and other parameters state what
# the engine is.

"""


def read_config(path: Path) -> ModelConfig:
    """The message in a `config.pbtxt`.

    Raises:
        ServingError: it cannot be read, or is not a Triton model config (line and column named).
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except OSError as error:
        raise ServingError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{path} is not UTF-8: {error.reason}, at {error.start}") from error
    except text_format.ParseError as error:
        raise ServingError(f"{path} is not a Triton model config: {error}") from error


def write_config(config: ModelConfig, path: Path) -> None:
    """Writes the message as a `config.pbtxt`. Triton wants `max_batch_size` even where it is 0."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config, as_utf8=True)
    if config.max_batch_size == 0:
        text += "max_batch_size: 0\n"
    path.write_text(HEADER + text, encoding="utf-8")


def backend_of(config: ModelConfig) -> str:
    """The backend that a config names, itself or by its platform; empty where it names none."""
    return str(config.backend or PLATFORMS.get(config.platform, ""))


def set_parameter(config: ModelConfig, name: str, value: str) -> None:
    """Sets a parameter of the model (a string, as Triton has it)."""
    config.parameters[name].string_value = value


def set_tensors(config: ModelConfig, specs: Mapping[str, TensorSpec]) -> None:
    """Sets the data type and sizes of every tensor of the config that a contract knows.

    A contract's first axis is the batch: left out where the model batches. Where it does not, it is
    the images of one request.
    Inputs that are warmed up follow, keeping the config's own size on dynamic axes.
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
            # zip stops short where the ranks differ: then the contract's own sizes stand.
            old = [*given.dims, *([1] * len(dims))]
            given.dims[:] = [new if new > 0 else kept for new, kept in zip(dims, old, strict=False)]


def drop_tensors(config: ModelConfig, names: set[str]) -> None:
    """Takes tensors out of a config: its own, its warm-up's, and those of its steps."""
    for tensors in (config.input, config.output):
        _keep(tensors, lambda tensor: tensor.name not in names)
    for sample in config.model_warmup:
        for name in names & set(sample.inputs):
            del sample.inputs[name]
    for step in config.ensemble_scheduling.step:
        for tensor_map in (step.input_map, step.output_map):
            for name in names & set(tensor_map):
                del tensor_map[name]


def _keep(repeated: Any, wanted: Any) -> None:
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)


def data_type(spec: TensorSpec) -> int:
    """The number of Triton's data type for a tensor's dtype."""
    from tritonclient.grpc import model_config_pb2

    return int(model_config_pb2.DataType.Value(DATA_TYPES[spec.dtype]))


def _dims(spec: TensorSpec, *, batched: bool) -> list[int]:
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.axes[1:]]
    return dims if batched else [-1, *dims]
