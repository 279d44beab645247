"""Repositories broken on purpose, and some that only look it: what lint and Triton are asked of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODEL = """\
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [backend.InferenceResponse([]) for _ in requests]
"""

STEP = """\
name: "{name}"
backend: "python"
max_batch_size: 4
input [
  {{ name: "{reads}" data_type: TYPE_FP32 dims: [ 4 ] }}
]
output [
  {{ name: "{makes}" data_type: TYPE_FP32 dims: [ 4 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""

CHAIN = """\
name: "chain"
platform: "ensemble"
max_batch_size: 4
input [ { name: "a" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "c" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "first"
      model_version: -1
      input_map { key: "a" value: "a" }
      output_map { key: "b" value: "b" }
    },
    {
      model_name: "second"
      model_version: -1
      input_map { key: "b" value: "b" }
      output_map { key: "c" value: "c" }
    }
  ]
}
"""

HEALTHY = {
    "first/config.pbtxt": STEP.format(name="first", reads="a", makes="b"),
    "first/1/model.py": MODEL,
    "second/config.pbtxt": STEP.format(name="second", reads="b", makes="c"),
    "second/1/model.py": MODEL,
    "chain/config.pbtxt": CHAIN,
    "chain/1/.keep": "",
}
FIRST, SECOND, ENSEMBLE = "first/config.pbtxt", "second/config.pbtxt", "chain/config.pbtxt"


def tensor(name: str) -> str:
    return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }}'


INPUT, TWO_INPUTS = tensor("a"), f"{tensor('a')},\n{tensor('a2')}"
SECOND_INPUT, SECOND_INPUTS = tensor("b"), f"{tensor('b')},\n{tensor('m')}"
OUTPUT, TWO_OUTPUTS = tensor("c"), f"{tensor('c')},\n{tensor('d')}"
TOP = 'name: "{}"\n'
GROUP = "instance_group [ { count: 1 kind: KIND_CPU } ]"
WARM = """\
model_warmup [
  {{ # sample
    name: "one"
    batch_size: {batch}
    inputs {{
      key: "{key}"
      value {{ {value} }}
    }}
  }}
]
"""
ZERO = "data_type: TYPE_FP32 dims: [ 4 ] zero_data: true"


def warm(batch: int = 1, key: str = "a", value: str = ZERO) -> str:
    return WARM.format(batch=batch, key=key, value=value)


def below(text: str, first: str = '\nbackend: "python"\n') -> tuple[str, str]:
    """An edit that writes text after a line."""
    return first, f"{first}{text}\n"


def before_steps(text: str) -> tuple[str, str]:
    return "ensemble_scheduling {", f"{text}\nensemble_scheduling {{"


@dataclass(frozen=True)
class Case:
    """What is broken, and what is to be said of it.

    `edits` are per file: text and what it becomes, `None` where the file goes, or all of a new one.
    `at` is on the
    faulty line; empty where no line is at fault. `told` is what the server's log says.
    """

    rule: str
    file: str
    at: str
    edits: dict[str, list[tuple[str, str]] | str | None]
    told: str = ""
    others: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return self.file.partition("/")[0]

    def __str__(self) -> str:
        return self.rule


def case(rule: str, file: str, at: str, *edits: tuple[str, str], told: str = "", others=()) -> Case:
    """One whose edits are all in the file that is at fault."""
    return Case(rule, file, at, {file: list(edits)}, told, others)


UNREAD = "failed to read text proto"
CASES = [
    Case("config-missing", FIRST, "", {FIRST: None}, "failed to open text file"),
    case(
        "config-syntax", FIRST, "count: 1 ]", (GROUP, "instance_group [ { count: 1 ]"), told=UNREAD
    ),
    case(
        "unknown-field",
        FIRST,
        "max_bath",
        ("max_batch_size: 4", "max_batch_size: 4 max_bath: 4"),
        told=UNREAD,
    ),
    case("unknown-value", FIRST, "KIND_GPUU", ("KIND_CPU", "KIND_GPUU"), told=UNREAD),
    case("unknown-value", FIRST, ": 9", ("KIND_CPU", "9"), told="unexpected kind"),
    case(
        "unknown-field", FIRST, "99", ("max_batch_size: 4", "max_batch_size: 4 99: 1"), told=UNREAD
    ),
    case(
        "config-syntax", FIRST, "_size:", ("max_batch_size: 4", "max_batch_size:\xa04"), told=UNREAD
    ),
    case("config-syntax", FIRST, 'name: "first"', ("name", "\ufeffname"), told=UNREAD),
    case("config-encoding", FIRST, "# caf", below("# caf\udce9")),
    Case("no-model", "plain", "", {"plain/notes": ""}, "failed to open text file"),
    case(
        "backend-misspelt",
        FIRST,
        "pyton",
        ('"python"', '"pyton"'),
        told="unable to find backend library",
    ),
    case(
        "backend-misspelt",
        FIRST,
        "onnxruntime_onnx",
        ('"python"', '"onnxruntime_onnx"'),
        told="unable to find backend library",
    ),
    case(
        "version-policy",
        FIRST,
        "latest",
        below("version_policy { latest { num_versions: 0 } }"),
        told="at least one version",
    ),
    case(
        "version-policy",
        FIRST,
        "specific",
        below("version_policy { specific { } }"),
        told="at least one version",
    ),
    Case(
        "version-missing",
        "first",
        "",
        {"first/1/model.py": None, "first/01/model.py": MODEL},
        "at least one version",
    ),
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
        "ensemble-steps",
        ENSEMBLE,
        "{ # gives nothing",
        ('    {\n      model_name: "first"', '    { # gives nothing\n      model_name: "first"'),
        ('      output_map { key: "b" value: "b" }\n', ""),
        told="must specify 'output_map'",
        others=("tensor-unmade",),
    ),
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
        "two-schedulers",
        ENSEMBLE,
        "dynamic_batching",
        before_steps("dynamic_batching { }"),
        told=UNREAD,
    ),
    case(
        "name-differs",
        FIRST,
        "fist",
        ('name: "first"', 'name: "fist"'),
        told="directory name must equal model name",
    ),
    case("max-batch-size-missing", FIRST, 'name: "first"', ("max_batch_size: 4\n", "")),
    case(
        "max-batch-size-negative",
        FIRST,
        "-4",
        ("max_batch_size: 4", "max_batch_size: -4"),
        told="must be non-negative",
    ),
    Case("version-missing", "chain", "", {"chain/1/.keep": None}, "at least one version"),
    case(
        "version-policy",
        FIRST,
        "versions",
        below("version_policy {\nspecific { versions: [ 3 ] }\n}"),
        told="at least one version",
    ),
    case(
        "platform-unknown",
        FIRST,
        "plann",
        ('backend: "python"', 'platform: "tensorrt_plann"'),
        told="unexpected platform type",
    ),
    case("backend-missing", FIRST, 'name: "first"', ('backend: "python"\n', "")),
    case("platform-and-backend", FIRST, "backend", below('platform: "tensorrt_plan"')),
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
    case(
        "gpus-without-gpu",
        FIRST,
        "gpus",
        ("kind: KIND_CPU", "kind: KIND_CPU\n gpus: [ 0 ]"),
        told="specifies one or more GPUs",
    ),
    case(
        "profile-elsewhere",
        FIRST,
        "profile",
        ("kind: KIND_CPU", 'kind: KIND_CPU\n profile: "0"'),
        told="only supported for TensorRT",
    ),
    case(
        "backend-not-offered",
        FIRST,
        "onnxruntime",
        ('"python"', '"onnxruntime"'),
        told="unable to find backend library",
        others=("model-file",),
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
HARMLESS = [
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
"""What looks odd, and is nothing to Triton."""

NAMES = [f"{case}-{number}" for number, case in enumerate(CASES)]


def edited(case: Case) -> dict[str, str]:
    """The files of the healthy repository, broken."""
    files = dict(HEALTHY)
    for path, edits in case.edits.items():
        if edits is None:
            del files[path]
            continue
        if isinstance(edits, str):
            files[path] = edits
            continue
        for old, new in edits:
            assert old in files[path], f"{path} of {case} has no {old!r}"
            files[path] = files[path].replace(old, new, 1)
    return files


def write(files: dict[str, str], into: Path) -> Path:
    for name in ("first", "second", "chain"):
        (into / name).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(into / path, text)
    return into


def write_text(path: Path, text: str) -> None:
    """As UTF-8, but for the surrogates that stand for bytes that are none of it."""
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def line_of(text: str, file: str) -> int | None:
    lines = [number for number, line in enumerate(file.splitlines(), 1) if text in line]
    return lines[0] if text else None
