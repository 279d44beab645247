"""Repositories broken on purpose: what the checker says of each, and what the real server says."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from export.errors import ServingError
from serving.lint.checking import lint
from serving.lint.rule import Severity, Verdict
from serving.lint.rules import RULES
from serving.server import ServerOptions, TritonServer
from serving.server_log import entries

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


def test_a_healthy_repository_is_clean(tmp_path):
    assert lint(write(HEALTHY, tmp_path)).findings == ()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_fault_is_named_with_its_file_and_line(case, tmp_path):
    files = edited(case)
    report = lint(write(files, tmp_path))
    found = {finding.rule.id for finding in report.findings}
    assert found == {case.rule, *case.others}, report
    places = [(one.path, one.line) for one in report.findings if one.rule.id == case.rule]
    assert (case.file, line_of(case.at, files.get(case.file, ""))) in places, report
    assert report.passed() == (all(RULES[rule].severity != Severity.ERROR for rule in found))


def test_every_rule_that_a_plain_server_can_be_asked_of_has_a_repository_here():
    asked = {rule.id for rule in RULES.values() if rule.server != Verdict.UNASKED}
    elsewhere = {"python-model", "gpu-for-cpu-engine", "limits-differ", "build-place"}
    elsewhere |= {"build-files", "config-unreadable", "python-environment", "version-name"}
    assert asked == {case.rule for case in CASES} | elsewhere


@dataclass(frozen=True)
class Heard:
    """What one server says of all broken repositories at once."""

    states: dict[str, str]
    log: list[str]

    def of(self, model: str) -> str:
        return "\n".join(entry for entry in self.log if re.search(rf"\b{model}\b", entry))


def union(into: Path, numbers: Iterable[int]) -> Path:
    """One repository of several: what a case has edited bears its number, the rest is shared."""
    write(HEALTHY, into)
    for number in numbers:
        case = ALL[number]
        changed = {path.partition("/")[0] for path in case.edits} | {case.model}
        for path, text in edited(case).items():
            model, _, rest = path.partition("/")
            if model in changed:
                name = f"{model}_{number}"
                (into / name / rest).parent.mkdir(parents=True, exist_ok=True)
                for other in changed:
                    text = text.replace(f'"{other}"', f'"{other}_{number}"')
                write_text(into / name / rest, text)
        (into / f"{case.model}_{number}").mkdir(exist_ok=True)
    return into


def hear(scratch: Path, numbers: Iterable[int]) -> Heard:
    repository = union(scratch / "models", numbers)
    extra = ("--exit-on-error=false", "--strict-readiness=false")
    options = ServerOptions(log=scratch / "log", extra=extra, ready_timeout_s=120)
    with TritonServer(repository, options) as server:
        url = f"{server.http_url}/v2/repository/index"
        request = urllib.request.Request(url, data=b"{}", method="POST")
        with urllib.request.urlopen(request) as response:
            index = json.load(response)
        log = server.log_path.read_text(encoding="utf-8", errors="replace")
    states = {model["name"]: model.get("state", "") for model in index}
    return Heard(states, entries(log))


ALL = [*CASES, *HARMLESS]
WARMED = [
    number
    for number, case in enumerate(ALL)
    if any("model_warmup" in text for text in edited(case).values())
]
"""Cases that warm a model up: now and then Triton 2.51 crashes when such a run fails."""

TRIES = 5


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Heard]:
    """What a server says of a case: one of all, but for those that might bring the others down."""

    @cache
    def together() -> Heard:
        numbers = [number for number in range(len(ALL)) if number not in WARMED]
        return hear(tmp_path_factory.mktemp("broken"), numbers)

    def alone(number: int) -> Heard:
        for _ in range(TRIES - 1):
            with contextlib.suppress(ServingError):
                return hear(tmp_path_factory.mktemp("broken"), [number])
        return hear(tmp_path_factory.mktemp("broken"), [number])

    return lambda number: alone(number) if number in WARMED else together()


@pytest.mark.e2e
@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_the_real_server_says_the_same(number, heard):
    case = CASES[number]
    name, said = f"{case.model}_{number}", heard(number)
    loaded = said.states.get(name) == "READY"
    told = said.of(name)
    assert RULES[case.rule].server == (Verdict.ACCEPTS if loaded else Verdict.REFUSES), told
    assert re.search(case.told, told), told


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_no_harm_is_not_blamed(case, tmp_path):
    assert lint(write(edited(case), tmp_path)).findings == ()


@pytest.mark.e2e
@pytest.mark.parametrize("number", range(len(CASES), len(ALL)))
def test_what_does_no_harm_the_real_server_loads(number, heard):
    name, said = f"{ALL[number].model}_{number}", heard(number)
    assert said.states[name] == "READY", said.of(name)


def refuse_config(models):
    (models / FIRST).unlink()
    (models / FIRST).mkdir()


def link_nowhere(models):
    (models / "ghost").symlink_to("nowhere")


def large_version(models):
    (models / "first" / "1").rename(models / "first" / "99999999999999999999")


def old_version(models):
    (models / "first" / "1").rename(models / "first" / "1.old")


def lost_environment(models):  # not with the others: it can bring down a server that is busy
    (models / FIRST).write_text(
        HEALTHY[FIRST] + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: '
        '"$$TRITON_MODEL_DIRECTORY/gone.tar.gz" } }'
    )


@pytest.mark.parametrize(
    ("damage", "rule", "path"),
    [
        (lost_environment, "python-environment", FIRST),
        (refuse_config, "config-unreadable", "first/config.pbtxt"),
        (link_nowhere, "link-broken", "ghost"),
        (large_version, "version-name", "first/99999999999999999999"),
        (old_version, "version-name", "first/1.old"),
    ],
)
class TestWhatBringsTheWholeServerDown:
    def test_is_an_error(self, damage, rule, path, tmp_path):
        damage(write(HEALTHY, tmp_path))
        report = lint(tmp_path)
        assert (rule, path) in {(one.rule.id, one.path) for one in report.findings}
        assert not report.passed()

    @pytest.mark.e2e
    def test_does_so(self, damage, rule, path, tmp_path):
        damage(write(HEALTHY, tmp_path / "models"))
        options = ServerOptions(log=tmp_path / "log", ready_timeout_s=5)
        with pytest.raises(ServingError), TritonServer(tmp_path / "models", options):
            pass


@pytest.mark.parametrize("name", ["²", "\uff11", "+1", "-1", " 1", "1_0", "v1"])
def test_a_version_that_is_no_plain_number_is_no_version(name, tmp_path):
    write(HEALTHY, tmp_path)
    (tmp_path / "first" / "1").rename(tmp_path / "first" / name)
    found = {one.rule.id: one.message for one in lint(tmp_path).findings}
    assert f"there is {name}" in found["version-missing"]
    assert ("version-name" in found) == (name not in ("²", "\uff11", "v1"))


@pytest.mark.parametrize("value", ["99", "-3"])
def test_a_number_that_no_data_type_has_is_shown_as_it_is(value, tmp_path):
    files = dict(HEALTHY)
    files[SECOND] = files[SECOND].replace("TYPE_FP32", value, 1)
    found = {one.rule.id: one.message for one in lint(write(files, tmp_path)).findings}
    assert f"data_type has no value {value}" in found["unknown-value"]
    assert f"'b' is {value} as second's input" in found["step-data-type"]


@pytest.mark.parametrize(("mark", "name"), [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16")])
def test_a_byte_order_mark_is_named(mark, name, tmp_path):
    config = write(HEALTHY, tmp_path) / FIRST
    config.write_bytes(mark + config.read_bytes())
    found = {one.rule.id: one.message for one in lint(tmp_path).findings}
    assert f"byte order mark of {name};" in found["config-syntax"]


def test_a_warm_up_without_inputs_is_named(tmp_path):
    """The server said "request has 0 inputs"; it is not asked, as failed warm-ups can end it."""
    files = dict(HEALTHY)
    files[FIRST] = files[FIRST].replace(INPUT, INPUT.replace("]", "] optional: true"))
    files[FIRST] += 'model_warmup [ { name: "none" batch_size: 1 } ]'
    (found,) = lint(write(files, tmp_path)).findings
    assert (found.rule.id, found.message) == ("warmup-inputs", "warm-up 'none' has no inputs")


def test_of_a_long_line_the_reason_is_shown(tmp_path):
    files = dict(HEALTHY)
    files[FIRST] = files[FIRST].replace("\n", " ") + "x" * 10_000 + " = "
    findings = lint(write(files, tmp_path)).findings
    (found,) = (one for one in findings if one.rule.id == "config-syntax")
    assert len(found.message) < 300
    assert "Expected" in found.message


@pytest.mark.e2e
def test_for_a_missing_python_model_the_real_server_waits_for_ever(tmp_path):
    files = dict(HEALTHY)
    files["first/1/Model.py"] = files.pop("first/1/model.py")
    report = lint(write(files, tmp_path / "models"))
    assert [(one.rule.id, one.path) for one in report.findings] == [("python-model", "first/1")]
    assert RULES["python-model"].server == Verdict.WAITS

    options = ServerOptions(log=tmp_path / "log", ready_timeout_s=5)
    with pytest.raises(ServingError, match="was not ready"):
        TritonServer(tmp_path / "models", options).__enter__()
    log = (tmp_path / "log").read_text()
    assert "successfully loaded 'second'" in log
    assert "failed to load 'first'" not in log
