"""A repository with no fault, and how one is put into it."""

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


UNREAD = "failed to read text proto"
"""What the server's log says of a config that its parser does not take."""


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
