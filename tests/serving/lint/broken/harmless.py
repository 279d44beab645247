"""What looks odd, and is nothing to Triton."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import (
    ENSEMBLE,
    FIRST,
    MODEL,
    ZERO,
    Case,
    before_steps,
    below,
    case,
    tensor,
    warm,
)

CASES = [
    case(
        "",
        FIRST,
        "",
        below(
            'sequence_batching { control_input { name: "S" control { kind: CONTROL_SEQUENCE_START '
            'fp32_false_true: [ 0, 1 ] } } control_input { name: "I" control { '
            "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } } }"
        ),
    ),
    Case(
        "",
        FIRST,
        "",
        {
            FIRST: [
                below(
                    warm(
                        batch=2, value=ZERO.replace("zero_data: true", 'input_data_file: "one row"')
                    )
                )
            ],
            "first/warmup/one row": "16 bytes of row.",
        },
    ),
    case("", ENSEMBLE, "", before_steps("instance_group [ ]")),
    case("", ENSEMBLE, "", before_steps("model_warmup [ ]")),
    case("", ENSEMBLE, "", before_steps('backend: ""')),
    case("", ENSEMBLE, "", before_steps('default_model_filename: "x"')),
    case("", FIRST, "", ("\n", "\r\n"), ("max_batch_size: 4", "max_batch_size:\f\v0x4")),
    case("", FIRST, "", (tensor("b"), tensor("b").replace("[ 4 ]", "4"))),
    case("", FIRST, "", below(warm().replace("batch_size: 1", "batch_size: 0"))),
    Case("", FIRST, "", {"first/0/model.py": MODEL}),
    Case("", FIRST, "", {"first/01/model.py": MODEL}),
    Case("", FIRST, "", {"first/1.old/model.py": MODEL}),
]
