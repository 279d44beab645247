"""Of Triton's gRPC service, the calls and messages that a client needs.

`tritonclient` has them all, and needs ml_dtypes, rapidjson and urllib3 for what no client here
does.
The messages are made from the table below, with the names and numbers of NVIDIA's
`grpc_service.proto` and `model_config.proto`. What else a server sends in them is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

Message = Any
"""A protobuf message, which has no types to check against."""

_INFER_PARAMETERS = "map InferParameter parameters"

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelReadyRequest": {1: "string name", 2: "string version"},
    "ModelReadyResponse": {1: "bool ready"},
    "ModelConfigRequest": {1: "string name", 2: "string version"},
    "ModelConfigResponse": {1: "ModelConfig config"},
    "ModelConfig": {1: "string name", 14: "map ModelParameter parameters"},
    "ModelParameter": {1: "string string_value"},
    "InferParameter": {
        1: "oneof bool bool_param",
        2: "oneof int64 int64_param",
        3: "oneof string string_param",
        4: "oneof double double_param",
        5: "oneof uint64 uint64_param",
    },
    "InputTensor": {
        1: "string name",
        2: "string datatype",
        3: "repeated int64 shape",
        4: _INFER_PARAMETERS,
    },
    "RequestedOutputTensor": {1: "string name", 2: _INFER_PARAMETERS},
    "ModelInferRequest": {
        1: "string model_name",
        2: "string model_version",
        3: "string id",
        4: _INFER_PARAMETERS,
        5: "repeated InputTensor inputs",
        6: "repeated RequestedOutputTensor outputs",
        7: "repeated bytes raw_input_contents",
    },
    "ModelInferResponse": {
        1: "string model_name",
        2: "string model_version",
        3: "string id",
        4: _INFER_PARAMETERS,
        5: "repeated InputTensor outputs",
        6: "repeated bytes raw_output_contents",
    },
    "ModelStreamInferResponse": {1: "string error_message", 2: "ModelInferResponse infer_response"},
}
"""Type and name of each field, by message and number. An output's tensor has the fields of an
input's."""

CALLS: Mapping[str, tuple[str, str, str]] = {
    "ModelReady": ("unary_unary", "ModelReadyRequest", "ModelReadyResponse"),
    "ModelConfig": ("unary_unary", "ModelConfigRequest", "ModelConfigResponse"),
    "ModelInfer": ("unary_unary", "ModelInferRequest", "ModelInferResponse"),
    # The server takes a stream of requests. One alone is the same on the wire, and needs no thread.
    "ModelStreamInfer": ("unary_stream", "ModelInferRequest", "ModelStreamInferResponse"),
}
"""By name: the kind of call, its request and its response."""

_PACKAGE = "inference"


def _fields(name: str) -> Iterator[tuple[int, list[str], str, str]]:
    """Number, words before the type, type and name of a message's fields."""
    for number, words in MESSAGES[name].items():
        *labels, kind, field = words.split()
        yield number, labels, kind, field


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="iblip_client.proto", package=_PACKAGE, syntax="proto3"
    )
    for name in MESSAGES:
        message = file.message_type.add(name=name)
        for number, labels, kind, field in _fields(name):
            if "map" in labels:
                entry = f"{field.capitalize()}Entry"
                pair = message.nested_type.add(name=entry)
                pair.options.map_entry = True
                _add_field(pair, 1, [], "string", "key")
                _add_field(pair, 2, [], kind, "value")
                _add_field(message, number, ["repeated"], f"{name}.{entry}", field)
            else:
                _add_field(message, number, labels, kind, field)
    return file


def _add_field(
    message: descriptor_pb2.DescriptorProto, number: int, labels: list[str], kind: str, name: str
) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number, label=types.LABEL_OPTIONAL)
    if "repeated" in labels:
        field.label = types.LABEL_REPEATED
    if "oneof" in labels:
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind[0].isupper():
        field.type = types.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = types.Type.Value(f"TYPE_{kind.upper()}")


# A pool of their own: the process may have tritonclient's messages of the same names as well.
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message_class(name: str) -> Any:
    """The class of one of `MESSAGES`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ModelConfigRequest = message_class("ModelConfigRequest")
ModelInferRequest = message_class("ModelInferRequest")
ModelReadyRequest = message_class("ModelReadyRequest")


class Service:
    """The calls of a server, as gRPC's generated stubs have them.

    Args:
        channel: of `grpc` or `grpc.aio`.
        metadata: gives that of a call.
    """

    ModelReady: Callable[..., Any]
    ModelConfig: Callable[..., Any]
    ModelInfer: Callable[..., Any]
    ModelStreamInfer: Callable[..., Any]

    def __init__(
        self, channel: Any, metadata: Callable[[], tuple[tuple[str, str], ...]] = tuple
    ) -> None:
        for name, (kind, _, response) in CALLS.items():
            call = getattr(channel, kind)(
                f"/{_PACKAGE}.GRPCInferenceService/{name}",
                request_serializer=_serialised,
                response_deserializer=message_class(response).FromString,
            )
            setattr(self, name, partial(_called, call, metadata))


def _called(call: Any, metadata: Callable[[], Any], *arguments: Any, **others: Any) -> Any:
    return call(*arguments, metadata=metadata() or None, **others)


def _serialised(message: Message) -> bytes:
    """A message of this module or of tritonclient, as it travels."""
    data: bytes = message.SerializeToString()
    return data
