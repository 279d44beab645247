"""Inputs and outputs without a name, a type or a shape that Triton takes."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import FIRST, INPUT, case, tensor

CASES = [
    case(
        "tensor-nameless",
        FIRST,
        "{ data_type",
        (INPUT, INPUT.replace('name: "a" ', "")),
        told="must specify 'name'",
        others=("step-tensor", "step-input-unmapped"),
    ),
    *(
        case(
            "reshape",
            FIRST,
            "reshape",
            (INPUT, INPUT.replace("[ 4 ]", f"[ {dims} ]\n reshape {{ shape: [ {shape} ] }}")),
            told="reshape",
            others=others,
        )
        for dims, shape, others in (
            ("4", "-2, -2", ()),
            ("-1, 4", "4, -1", ("step-shape",)),
            ("-1, 4", "-1, 3", ("step-shape",)),
        )
    ),
    case(
        "reshape",
        FIRST,
        "reshape",
        ("max_batch_size: 4", "max_batch_size: 0"),
        (INPUT, INPUT.replace("[ 4 ]", "[ 1 ]\n reshape { }")),
        told="empty reshape",
        others=("step-shape",),
    ),
    case(
        "image-format",
        FIRST,
        "FORMAT",
        (INPUT, INPUT.replace("dims", "format: FORMAT_NHWC dims")),
        told="require 3 dims",
    ),
    case(
        "shape-tensor",
        FIRST,
        "is_shape",
        (INPUT, INPUT.replace("dims", "is_shape_tensor: true dims")),
        told="only supported for TensorRT",
    ),
    case(
        "label-file",
        FIRST,
        "labels",
        (tensor("b"), tensor("b").replace("dims", 'label_filename: "labels.txt" dims')),
        told="failed to open text file",
    ),
    case(
        "data-type-missing",
        FIRST,
        '{ name: "a"',
        (INPUT, '{ name: "a" dims: [ 4 ] }'),
        told="must specify 'data_type'",
    ),
    case(
        "dims",
        FIRST,
        "dims: [ 0 ]",
        ('"a" data_type: TYPE_FP32 dims: [ 4 ]', '"a" data_type: TYPE_FP32\n dims: [ 0 ]'),
        told="dimension must be integer >= 1",
        others=("step-shape",),
    ),
    case(
        "no-tensors",
        FIRST,
        'name: "first"',
        (f"input [\n  {INPUT}\n]\n", ""),
        others=("step-tensor",),
    ),
    case("same-name", FIRST, f"{INPUT},", (INPUT, f"{INPUT},\n  {INPUT}")),
    case(
        "reshape",
        FIRST,
        "reshape",
        (
            '"a" data_type: TYPE_FP32 dims: [ 4 ]',
            '"a" data_type: TYPE_FP32 dims: [ 4 ]\n reshape { shape: [ 3 ] }',
        ),
        told="different size",
    ),
]
