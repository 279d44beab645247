"""Settings of a build, and which of those that were measured is recommended."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError
from iblip.serving.bench.figures import Figures
from iblip.serving.bench.loads import Closed
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.running import Outcome, Run
from iblip.serving.bench.settings import Setting, build_with, candidates, setting_of
from iblip.serving.bench.tuning import MARGIN, Trial, Tuning
from iblip.serving.repository.model_config import read_config

OWN = Setting(slots=8, max_batch=8, queue_delay_us=0)


def trial(*answers, slots=8, first=0.1, full=100, objective=None):
    """A setting that gave so many answers in the second of each turn."""
    one = Outcome(due_s=0, sent_s=0, first_s=first, last_s=2 * first, tokens=5)
    load = Closed(concurrency=1, seconds=1.0)
    turns = [Figures(Run(load=load, outcomes=[one] * n, seconds=1.0), objective) for n in answers]
    setting = Setting(slots=slots, max_batch=8, queue_delay_us=500)
    return Trial(setting=setting, full=full, turns=turns)


def tuning(*trials):
    return Tuning(directory=Path("build"), trials=trials, left_out={})


@given(st.lists(st.lists(st.integers(1, 200), min_size=2, max_size=2), min_size=1, max_size=8))
def test_only_what_beats_the_best_turn_of_the_builds_own_setting_is_recommended(answers):
    found = tuning(*(trial(*turns, slots=n) for n, turns in enumerate(answers, start=1)))
    floor = max(answers[0]) * (1 + MARGIN)
    better = [sum(turns) for turns in answers[1:] if min(turns) > floor]
    best = [one.answers_per_s for one in found.best.turns]
    assert sum(best) == (max(better) if better else sum(answers[0]))
    assert bool(found.steps()) == bool(better)


def test_a_setting_that_misses_the_objective_is_not_recommended():
    slow = Objective(ttft_s=0.2)
    own, fast = trial(10, 10, objective=slow), trial(50, 50, slots=16, objective=slow, first=0.5)
    assert tuning(own, fast).best is own
    meets = trial(5, 5, slots=4, objective=slow)
    misses = trial(10, 10, objective=slow, first=0.5)
    assert tuning(misses, meets).best is meets


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=8))
def test_efficient_is_what_no_other_dominates(rows):
    trials = [trial(n, n, first=first, full=full) for n, first, full in rows]
    found = tuning(*trials)
    for row, one in zip(rows, trials, strict=True):
        dominated = any(
            other != row and other[0] >= row[0] and other[1] <= row[1] and other[2] <= row[2]
            for other in rows
        )
        assert found.is_efficient(one) == (not dominated)


def test_a_setting_without_all_of_its_turns_is_not_recommended():
    own = trial(10, 10)
    assert tuning(own, trial(50, slots=16)).best is own


def test_the_steps_name_the_file_and_the_value():
    (step,) = tuning(trial(10, 10), trial(20, 20, slots=16)).steps()
    assert step.startswith("build/model_repository/instructblip/config.pbtxt")
    assert step.endswith("--slots 16")


def edited(build, tmp_path, **parameters):
    """A copy of a build whose config has other parameters; `None` takes one out."""
    copy = shutil.copytree(build, tmp_path / "build", symlinks=True)
    path = copy / "model_repository" / "instructblip" / "config.pbtxt"
    config = read_config(path)
    for name, value in parameters.items():
        if value is None:
            del config.parameters[name]
        else:
            config.parameters[name].string_value = value
    path.write_text(str(config))
    return copy


def test_without_the_parameter_slots_are_those_of_the_build(vicuna_build, tmp_path):
    assert setting_of(edited(vicuna_build, tmp_path, slots=None)) == OWN


@pytest.mark.parametrize(("name", "value"), [("slots", "many"), ("slots", "0"), ("limits", "[")])
def test_an_edited_config_that_the_server_refuses_is_named(vicuna_build, tmp_path, name, value):
    build = edited(vicuna_build, tmp_path, **{name: value})
    told = f"^{name} is '{re.escape(value)}' in config.pbtxt"
    with pytest.raises(OptionError, match=told), build_with(build, setting_of(build)):
        pass


def test_candidates_differ_from_the_build_in_one_respect(vicuna_build):
    own = setting_of(vicuna_build)
    assert own == OWN
    others = candidates(own, Manifest.read(vicuna_build))
    assert others[0] == own
    assert all(len(other.changes(own)) == 1 for other in others[1:])
    assert len(set(others)) == len(others)


def test_a_build_of_one_slot_and_batch_has_candidates(vicuna_build):
    least = Setting(slots=1, max_batch=1, queue_delay_us=0)
    for other in candidates(least, Manifest.read(vicuna_build)):
        assert min(other.slots, other.max_batch) >= 1


@pytest.mark.parametrize("field", ["slots", "max_batch", "queue_delay_us"])
def test_a_build_with_another_setting_leaves_the_build_as_it_is(vicuna_build, field):
    before = {path: path.read_bytes() for path in vicuna_build.rglob("*.pbtxt")}
    other = Setting(**{**vars(OWN), field: 3})
    with build_with(vicuna_build, other) as build:
        assert setting_of(build) == other
        assert Manifest.read(build) == Manifest.read(vicuna_build)
    assert not build.exists()
    assert before == {path: path.read_bytes() for path in vicuna_build.rglob("*.pbtxt")}
