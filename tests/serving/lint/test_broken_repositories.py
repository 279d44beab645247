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
from typing import Any

import pytest

from iblip.export.errors import ServingError
from iblip.serving.lint.checking import lint
from iblip.serving.lint.rule import Severity, Verdict
from iblip.serving.lint.rules import RULES
from iblip.serving.server.log import entries
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer
from tests.cases import exhaustive
from tests.serving.lint.broken.healthy import (
    FIRST,
    HEALTHY,
    INPUT,
    SECOND,
    edited,
    line_of,
    write,
    write_text,
)
from tests.serving.lint.repositories import CASES, HARMLESS, NAMES


def test_a_healthy_repository_is_clean(tmp_path):
    assert lint(write(HEALTHY, tmp_path)).diagnostics == ()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_fault_is_named_with_its_file_and_line(case, tmp_path):
    files = edited(case)
    report = lint(write(files, tmp_path))
    found = {finding.rule.id for finding in report.diagnostics}
    assert found == {case.rule, *case.others}, report
    places = [(one.path, one.line) for one in report.diagnostics if one.rule.id == case.rule]
    assert (case.file, line_of(case.at, files.get(case.file, ""))) in places, report
    assert report.passed() == (all(RULES[rule].severity != Severity.ERROR for rule in found))


def test_every_rule_that_a_plain_server_can_be_asked_of_has_a_repository_here():
    asked = {rule.id for rule in RULES.values() if rule.server != Verdict.UNASKED}
    elsewhere = {"python-model", "gpu-for-cpu-engine", "limits-differ", "build-place"}
    elsewhere |= {"build-files", "config-unreadable", "python-environment", "version-name"}
    elsewhere |= {"model-outdated"}
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


def cases(numbers: Iterable[int]) -> list[Any]:
    """Numbers of cases; of those that have a server of their own, all but one are exhaustive."""
    _, *more = (number for number in numbers if number in WARMED)
    return [exhaustive(number) if number in more else number for number in numbers]


@pytest.mark.e2e
@pytest.mark.parametrize("number", cases(range(len(CASES))), ids=NAMES)
def test_the_real_server_says_the_same(number, heard):
    case = CASES[number]
    name, said = f"{case.model}_{number}", heard(number)
    loaded = said.states.get(name) == "READY"
    told = said.of(name)
    assert RULES[case.rule].server == (Verdict.ACCEPTS if loaded else Verdict.REFUSES), told
    assert re.search(case.told, told), told


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_no_harm_is_not_blamed(case, tmp_path):
    assert lint(write(edited(case), tmp_path)).diagnostics == ()


@pytest.mark.e2e
@pytest.mark.parametrize("number", cases(range(len(CASES), len(ALL))))
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
        assert (rule, path) in {(one.rule.id, one.path) for one in report.diagnostics}
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
    found = {one.rule.id: one.message for one in lint(tmp_path).diagnostics}
    assert f"there is {name}" in found["version-missing"]
    assert ("version-name" in found) == (name not in ("²", "\uff11", "v1"))


@pytest.mark.parametrize("value", ["99", "-3"])
def test_a_number_that_no_data_type_has_is_shown_as_it_is(value, tmp_path):
    files = dict(HEALTHY)
    files[SECOND] = files[SECOND].replace("TYPE_FP32", value, 1)
    found = {one.rule.id: one.message for one in lint(write(files, tmp_path)).diagnostics}
    assert f"data_type has no value {value}" in found["unknown-value"]
    assert f"'b' is {value} as second's input" in found["step-data-type"]


@pytest.mark.parametrize(("mark", "name"), [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16")])
def test_a_byte_order_mark_is_named(mark, name, tmp_path):
    config = write(HEALTHY, tmp_path) / FIRST
    config.write_bytes(mark + config.read_bytes())
    found = {one.rule.id: one.message for one in lint(tmp_path).diagnostics}
    assert f"byte order mark of {name};" in found["config-syntax"]


def test_a_warm_up_without_inputs_is_named(tmp_path):
    """The server said "request has 0 inputs"; it is not asked, as failed warm-ups can end it."""
    files = dict(HEALTHY)
    files[FIRST] = files[FIRST].replace(INPUT, INPUT.replace("]", "] optional: true"))
    files[FIRST] += 'model_warmup [ { name: "none" batch_size: 1 } ]'
    (found,) = lint(write(files, tmp_path)).diagnostics
    assert (found.rule.id, found.message) == ("warmup-inputs", "warm-up 'none' has no inputs")


def test_of_a_long_line_the_reason_is_shown(tmp_path):
    files = dict(HEALTHY)
    files[FIRST] = files[FIRST].replace("\n", " ") + "x" * 10_000 + " = "
    findings = lint(write(files, tmp_path)).diagnostics
    (found,) = (one for one in findings if one.rule.id == "config-syntax")
    assert len(found.message) < 300
    assert "Expected" in found.message


@pytest.mark.e2e
def test_for_a_missing_python_model_the_real_server_waits_and_ours_does_not(tmp_path):
    files = dict(HEALTHY)
    files["first/1/Model.py"] = files.pop("first/1/model.py")
    report = lint(write(files, tmp_path / "models"))
    assert [(one.rule.id, one.path) for one in report.diagnostics] == [("python-model", "first/1")]
    assert RULES["python-model"].server == Verdict.WAITS

    options = ServerOptions(log=tmp_path / "log", ready_timeout_s=120)
    with pytest.raises(ServingError, match="ended before it had loaded, and Triton would wait"):
        TritonServer(tmp_path / "models", options).__enter__()
    log = (tmp_path / "log").read_text()
    assert "successfully loaded 'second'" in log
    assert "failed to load 'first'" not in log
