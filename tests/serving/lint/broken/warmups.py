"""Warm-up requests that the model does not take."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import FIRST, ZERO, Case, below, case, warm

CASES = [
    case("warmup-batch", FIRST, "batch_size: 9", below(warm(batch=9)), told="max allowed is 4"),
    case(
        "warmup-inputs",
        FIRST,
        "# sample",
        below(warm(key="zz")),
        told="missing required input",
        others=("warmup-unknown",),
    ),
    case(
        "warmup-unknown",
        FIRST,
        '"zz"',
        below(warm().replace("inputs", f'inputs {{ key: "zz" value {{ {ZERO} }} }}\n    inputs')),
    ),
    case(
        "warmup-type",
        FIRST,
        "INT32",
        below(warm(value=ZERO.replace("FP32", "INT32"))),
        told="data-type is 'INT32'",
    ),
    case(
        "warmup-shape",
        FIRST,
        "[ 5 ]",
        below(warm(value=ZERO.replace("4", "5"))),
        told="unexpected shape",
    ),
    case(
        "warmup-data",
        FIRST,
        "input_data_file",
        below(warm(value='data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "gone"')),
        told="failed to open",
    ),
    Case(
        "warmup-data",
        FIRST,
        "input_data_file",
        {
            FIRST: [below(warm(value='data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "d"'))],
            "first/warmup/d": "8 bytes.",
        },
        "expects 16 bytes",
    ),
]
