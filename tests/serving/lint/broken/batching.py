"""Batches, queues, sequences and response caches that a model cannot have."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import (
    ENSEMBLE,
    FIRST,
    SECOND,
    Case,
    before_steps,
    below,
    case,
)

CASES = [
    case(
        "preferred-batch-size-range",
        FIRST,
        "preferred",
        below(
            "sequence_batching { oldest {\nmax_candidate_sequences: 4\n"
            "preferred_batch_size: [ 8 ] } }"
        ),
        told="must be <= max batch size",
    ),
    case(
        "priority-levels",
        FIRST,
        "preserve_ordering",
        below(
            "dynamic_batching { priority_levels: 2 default_priority_level: 1\n"
            "preserve_ordering: true }"
        ),
        told="Only one priority level",
    ),
    *(
        case(
            "sequence-control",
            FIRST,
            "# control",
            below(
                'sequence_batching { control_input [ { name: "S" control [\n'
                f"{{ # control\n kind: CONTROL_SEQUENCE_{control} }} ] }} ] }}"
            ),
            told=told,
        )
        for control, told in (
            ("START", "must specify either"),
            ("READY int32_false_true: [ 0 ]", "exactly 2 entries"),
            ("END int32_false_true: [ 0, 1 ] bool_false_true: [ false, true ]", "more than one"),
            ("CORRID data_type: TYPE_FP32", "unexpected data type"),
        )
    ),
    case(
        "sequence-control",
        FIRST,
        "# again",
        below(
            "sequence_batching {\n"
            'control_input { name: "S" control { kind: CONTROL_SEQUENCE_START '
            "fp32_false_true: [ 0, 1 ] } }\n"
            'control_input { name: "T" control { # again\nkind: CONTROL_SEQUENCE_START '
            "fp32_false_true: [ 0, 1 ] } } }"
        ),
        told="multiple CONTROL_SEQUENCE_START",
    ),
    case(
        "sequence-state",
        FIRST,
        "data_file",
        below(
            'sequence_batching { state { input_name: "s" output_name: "t" data_type: TYPE_FP32\n'
            'dims: [ 1 ] initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 1 ]\n'
            'data_file: "gone" } } }'
        ),
        told="failed to open text file",
    ),
    case(
        "cache-sequence",
        FIRST,
        "response_cache",
        below("sequence_batching { }\nresponse_cache { enable: true }"),
        told="with sequence batching",
    ),
    case(
        "batching-without-batches",
        FIRST,
        "dynamic",
        ("max_batch_size: 4", "max_batch_size: 0"),
        below("dynamic_batching { }"),
    ),
    case(
        "preferred-batch-size",
        FIRST,
        "preferred",
        below("dynamic_batching {\npreferred_batch_size: [ 2, 4 ]\n}"),
    ),
    case(
        "preferred-batch-size-range",
        FIRST,
        "preferred",
        below("dynamic_batching {\npreferred_batch_size: [ 8 ]\n}"),
        told="must be <= max batch size",
        others=("preferred-batch-size",),
    ),
    case(
        "queue-policy",
        FIRST,
        "default_queue",
        below("dynamic_batching {\ndefault_queue_policy { max_queue_size: 3 }\n}"),
    ),
    case(
        "priority-levels",
        FIRST,
        "priority_levels",
        below("dynamic_batching { priority_levels: 2 }"),
        told="default priority level",
    ),
    case(
        "cache-decoupled",
        FIRST,
        "response_cache",
        below("response_cache { enable: true }"),
        below("model_transaction_policy { decoupled: true }"),
        told="does not currently support",
    ),
    Case(
        "cache-decoupled",
        ENSEMBLE,
        "response_cache",
        {
            ENSEMBLE: [before_steps("response_cache { enable: true }")],
            SECOND: [below("model_transaction_policy { decoupled: true }")],
        },
        "does not currently support",
    ),
    case(
        "cache-text",
        FIRST,
        "response_cache",
        below("response_cache { enable: true }"),
        ('"b" data_type: TYPE_FP32', '"b" data_type: TYPE_STRING'),
        others=("step-data-type",),
    ),
]
