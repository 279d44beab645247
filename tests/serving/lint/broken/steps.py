"""Steps of an ensemble that do not fit the models they name."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import (
    ENSEMBLE,
    SECOND,
    SECOND_INPUT,
    SECOND_INPUTS,
    Case,
    below,
    case,
)

CASES = [
    case(
        "step-version",
        ENSEMBLE,
        "{ # of no version",
        (
            '    {\n      model_name: "first"\n      model_version: -1',
            '    { # of no version\n      model_name: "first"',
        ),
        told="required version 0",
    ),
    case(
        "step-model", ENSEMBLE, "secnd", ('"second"', '"secnd"'), told="not available or ambiguous"
    ),
    case(
        "step-version",
        ENSEMBLE,
        ": 7",
        ('"second"\n      model_version: -1', '"second"\n      model_version: 7'),
        told="required version 7",
    ),
    case(
        "step-tensor",
        ENSEMBLE,
        '"zz"',
        below(
            '      input_map { key: "zz" value: "b" }', '      input_map { key: "b" value: "b" }\n'
        ),
        told="non-existing input",
    ),
    Case(
        "step-input-unmapped",
        ENSEMBLE,
        "{ # forgets",
        {
            SECOND: [
                (
                    SECOND_INPUT,
                    SECOND_INPUTS,
                )
            ],
            ENSEMBLE: [
                ('    {\n      model_name: "second"', '    { # forgets\n      model_name: "second"')
            ],
        },
        "is not mapped",
    ),
    Case(
        "ensemble-max-batch",
        ENSEMBLE,
        "max_batch_size",
        {
            SECOND: [("max_batch_size: 4", "max_batch_size: 2")],
            ENSEMBLE: [],
        },
        "allows maximum batch size",
    ),
    Case(
        "step-data-type",
        ENSEMBLE,
        'input_map { key: "b"',
        {
            SECOND: [('"b" data_type: TYPE_FP32', '"b" data_type: TYPE_FP16')],
            ENSEMBLE: [],
        },
        "inconsistent data type",
    ),
    Case(
        "step-shape",
        ENSEMBLE,
        'input_map { key: "b"',
        {
            SECOND: [
                ('"b" data_type: TYPE_FP32 dims: [ 4 ]', '"b" data_type: TYPE_FP32 dims: [ 8 ]')
            ],
            ENSEMBLE: [],
        },
        "inconsistent shape",
    ),
]
