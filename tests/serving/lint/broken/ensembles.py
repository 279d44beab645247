"""Ensembles whose tensors and settings do not fit together."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import (
    CHAIN,
    ENSEMBLE,
    FIRST,
    INPUT,
    OUTPUT,
    SECOND,
    SECOND_INPUT,
    SECOND_INPUTS,
    TWO_INPUTS,
    TWO_OUTPUTS,
    Case,
    before_steps,
    below,
    case,
    warm,
)

CASES = [
    case(
        "ensemble-steps",
        ENSEMBLE,
        "{ # gives nothing",
        ('    {\n      model_name: "first"', '    { # gives nothing\n      model_name: "first"'),
        ('      output_map { key: "b" value: "b" }\n', ""),
        told="must specify 'output_map'",
        others=("tensor-unmade",),
    ),
    case(
        "ensemble-instance-group",
        ENSEMBLE,
        "instance_group",
        before_steps("instance_group [ { count: 1 } ]"),
        told="should not be specified",
    ),
    case(
        "ensemble-optimization",
        ENSEMBLE,
        "optimization",
        before_steps("optimization { priority: PRIORITY_MAX }"),
        told="should not be specified",
    ),
    case(
        "ensemble-warmup",
        ENSEMBLE,
        "model_warmup",
        before_steps(warm()),
        told="can not be specified",
    ),
    case(
        "ensemble-backend",
        ENSEMBLE,
        "backend",
        before_steps('backend: "python"'),
        told="empty backend type",
    ),
    case(
        "ensemble-steps",
        ENSEMBLE,
        "platform",
        (CHAIN[CHAIN.index("ensemble_scheduling") :], ""),
        told="ensemble scheduling must be set",
        others=("tensor-unused", "tensor-unmade"),
    ),
    case(
        "tensor-unmade",
        ENSEMBLE,
        '"nobody"',
        (
            'key: "b" value: "b" }\n      output_map { key: "c"',
            'key: "b" value: "nobody" }\n      output_map { key: "c"',
        ),
        told="is not connected|is unused",
        others=("tensor-unused",),
    ),
    case(
        "tensor-unmade",
        ENSEMBLE,
        '"d"',
        (OUTPUT, TWO_OUTPUTS),
        told="is not used",
    ),
    case(
        "tensor-made-twice",
        ENSEMBLE,
        "# again",
        (
            '    {\n      model_name: "second"',
            '    {\n      model_name: "first"\n      model_version: -1\n'
            '      input_map { key: "a" value: "a" }\n'
            '      output_map { key: "b" value: "b" } # again\n    },\n'
            '    {\n      model_name: "second"',
        ),
        told="only once",
    ),
    case(
        "input-made-again",
        ENSEMBLE,
        'key: "b" value: "a" }',
        ('output_map { key: "b" value: "b" }', 'output_map { key: "b" value: "a" }'),
        ('input_map { key: "b" value: "b" }', 'input_map { key: "b" value:\n "a" }'),
    ),
    case(
        "tensor-unused",
        ENSEMBLE,
        '"a2"',
        (INPUT, TWO_INPUTS),
        told="is not used",
    ),
    case(
        "tensor-cycle",
        ENSEMBLE,
        "{ # turns",
        (
            '    {\n      model_name: "second"',
            '    { # turns\n      model_name: "first"\n      model_version: -1\n'
            '      input_map { key: "a" value: "x" }\n'
            '      output_map { key: "b" value: "x" }\n    },\n'
            '    {\n      model_name: "second"',
        ),
        told="is unused|is not connected|not written",
    ),
    case(
        "ensemble-circle",
        ENSEMBLE,
        "# itself",
        ('    {\n      model_name: "first"', '    { # itself\n      model_name: "chain"'),
        (
            'input_map { key: "a" value: "a" }\n      output_map { key: "b"',
            'input_map { key: "a" value: "a" }\n      output_map { key: "c"',
        ),
        told="circular dependency",
    ),
    case(
        "ensemble-decoupled",
        ENSEMBLE,
        "model_transaction",
        before_steps("model_transaction_policy { decoupled: true }"),
    ),
    Case(
        "streams-joined",
        ENSEMBLE,
        "{ # meets",
        {
            SECOND: [
                (
                    SECOND_INPUT,
                    SECOND_INPUTS,
                )
            ],
            FIRST: [below("model_transaction_policy { decoupled: true }")],
            ENSEMBLE: [
                ('    {\n      model_name: "second"', '    { # meets\n      model_name: "second"'),
                (
                    'input_map { key: "b" value: "b" }',
                    'input_map { key: "b" value: "b" }\n input_map { key: "m" value: "a" }',
                ),
            ],
        },
        "different decoupled",
    ),
]
