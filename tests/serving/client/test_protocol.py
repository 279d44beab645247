"""The messages that a client has of its own are those of Triton's own client."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from iblip.serving.client.protocol import CALLS, MESSAGES, Service, message_class

NESTED = {
    "InputTensor": service_pb2.ModelInferRequest.InferInputTensor,
    "RequestedOutputTensor": service_pb2.ModelInferRequest.InferRequestedOutputTensor,
    "ModelConfig": model_config_pb2.ModelConfig,
    "ModelParameter": model_config_pb2.ModelParameter,
}


def theirs(name):
    return NESTED.get(name) or getattr(service_pb2, name)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_theirs(name):
    fields = theirs(name).DESCRIPTOR.fields_by_name
    for field in message_class(name).DESCRIPTOR.fields:
        other = fields[field.name]
        assert (field.number, field.type, field.is_repeated) == (
            other.number,
            other.type,
            other.is_repeated,
        )
        assert bool(field.containing_oneof) == bool(other.containing_oneof)
    for output in (service_pb2.ModelInferResponse.InferOutputTensor,):
        for field in message_class("InputTensor").DESCRIPTOR.fields:
            assert output.DESCRIPTOR.fields_by_name[field.name].number == field.number


def filled(kind):
    request = kind(model_name="m", id="7")
    request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 3])
    request.raw_input_contents.append(b"abc")
    request.parameters["a"].bool_param = True
    request.parameters["b"].int64_param = -5
    request.parameters["c"].string_param = "é"
    request.parameters["d"].double_param = 0.5
    request.outputs.add(name="text").parameters["classification"].int64_param = 1
    return request


def test_a_request_is_read_as_it_was_written():
    mine, other = filled(message_class("ModelInferRequest")), filled(service_pb2.ModelInferRequest)
    read = service_pb2.ModelInferRequest.FromString(mine.SerializeToString())
    assert read == other
    assert message_class("ModelInferRequest").FromString(other.SerializeToString()) == mine


def test_what_else_a_server_sends_is_passed_over():
    response = service_pb2.ModelConfigResponse()
    response.config.name = "m"
    response.config.max_batch_size = 8
    response.config.instance_group.add(count=2)
    response.config.parameters["limits"].string_value = "{}"
    mine = message_class("ModelConfigResponse").FromString(response.SerializeToString())
    assert (mine.config.name, mine.config.parameters["limits"].string_value) == ("m", "{}")


def test_its_calls_are_those_of_the_service():
    calls = {}

    class Channel:
        def _add(self, path, **_):
            calls[path.rpartition("/")[2]] = path
            return print

        unary_unary = stream_stream = unary_stream = stream_unary = _add

    service_pb2_grpc.GRPCInferenceServiceStub(type("All", (Channel,), {})())
    all_calls = dict(calls)
    calls.clear()
    Service(Channel())
    assert calls.keys() == CALLS.keys()
    assert calls.items() <= all_calls.items()


def test_it_leaves_the_pool_of_others_alone():
    found = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
    assert found is service_pb2.ModelInferRequest.DESCRIPTOR
