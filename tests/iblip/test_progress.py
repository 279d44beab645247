"""What a caller sees of long work: a line on stderr, calls of a function, or nothing."""

from __future__ import annotations

import pytest

from iblip import OptionError, Step
from iblip.progress import progress_from


def work(progress):
    """Two stages, one of which knows its total, and a note."""
    with progress.stage("write weights", 10, "B") as advance:
        advance(4)
        advance(6)
    progress.note("chosen: two")
    with progress.stage("compare") as advance:
        advance(1)


def test_a_function_is_told_of_each_step():
    steps = []
    work(progress_from(steps.append))
    bytes_ = {"text": "write weights", "total": 10, "unit": "B"}
    assert steps == [
        Step(kind="begin", **bytes_),
        Step(kind="advance", done=4, **bytes_),
        Step(kind="advance", done=10, **bytes_),
        Step(kind="end", done=10, **bytes_),
        Step(kind="note", text="chosen: two"),
        Step(kind="begin", text="compare"),
        Step(kind="advance", text="compare", done=1),
        Step(kind="end", text="compare", done=1),
    ]


def test_a_stage_that_fails_has_no_end():
    steps = []
    with pytest.raises(ValueError, match="broken"), progress_from(steps.append).stage("write"):
        raise ValueError("broken")
    assert [step.kind for step in steps] == ["begin"]


@pytest.mark.parametrize("option", [True, False, None])
def test_it_is_shown_on_stderr_or_not_at_all(option, capsys):
    work(progress_from(option))
    shown = capsys.readouterr()
    texts = ("write weights", "chosen: two", "compare")
    assert [text in shown.err for text in texts] == [option is True] * 3
    assert bool(shown.err) == (option is True)
    assert shown.out == ""


def test_anything_else_is_refused():
    with pytest.raises(OptionError, match="progress is 'bar'; expected True, False, None or a fu"):
        progress_from("bar")  # type: ignore[arg-type]
