"""Measures a build under several settings, in turns, and recommends one.

Each setting is served by a Triton of its own and gets the same load. A setting is recommended only
where its worst turn beats the best turn of the build's own setting by `MARGIN`: on most machines
two runs of the same setting differ by some per cent.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iblip.export.artifact.manifest import Manifest
from iblip.export.progress import Progress, Silent
from iblip.serving.bench.figures import Figures, Percentiles
from iblip.serving.bench.loads import Closed, Open
from iblip.serving.bench.objective import Objective
from iblip.serving.bench.requests import Mix
from iblip.serving.bench.resident import resident
from iblip.serving.bench.running import Bench, check_answered
from iblip.serving.bench.settings import (
    Setting,
    build_with,
    candidates,
    fits,
    memory_when_full,
    setting_of,
)
from iblip.serving.launching import environment_of_models
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

TURNS = 2

MARGIN = 0.03
"""Share by which a setting must be better."""

POINT = "p95"
"""The percentile of times that settings are compared by."""


@dataclass(kw_only=True)
class Trial:
    """A setting, and what was measured of it.

    Attributes:
        setting: the setting.
        full: bytes of memory when every slot is full; `None` where that is not known.
        turns: figures of each turn.
        memory: bytes of the server's processes after a turn, the largest; GPU memory is no part.
    """

    setting: Setting
    full: int | None
    turns: list[Figures] = field(default_factory=list)
    memory: int = 0

    def worth(self) -> list[float]:
        """Goodput of each turn; without an objective, answers a second."""
        return [one.answers_per_s if one.goodput is None else one.goodput for one in self.turns]

    @property
    def mean_worth(self) -> float:
        """The mean of `worth`."""
        return statistics.fmean(self.worth())

    def time(self, of: Callable[[Figures], Percentiles]) -> float | None:
        """Seconds at `POINT`, the mean of all turns; `None` where a turn has none."""
        times = [of(one)[POINT] for one in self.turns]
        known = [seconds for seconds in times if seconds is not None]
        return statistics.fmean(known) if len(known) == len(times) else None

    @property
    def meets(self) -> bool:
        """Whether every turn met the objective, if there is one."""
        return all(one.objective is None or one.meets for one in self.turns)

    def costs(self) -> tuple[float, ...]:
        """What is better where it is lower: throughput (negative), times, memory."""
        times = (self.time(lambda one: one.first_s), self.time(lambda one: one.last_s))
        return (
            -self.mean_worth,
            *(float("inf") if seconds is None else seconds for seconds in times),
            float(self.memory if self.full is None else self.full),
        )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured of a build.

    Attributes:
        directory: of the build.
        trials: those that were measured, the build's own setting first.
        left_out: settings that were not measured, and why.
    """

    directory: Path
    trials: Sequence[Trial]
    left_out: Mapping[Setting, str]

    @property
    def own(self) -> Trial:
        """The build's own setting."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The recommended setting: the build's own, unless another is better by more than noise."""
        floor = max(self.own.worth()) * (1 + MARGIN)
        better = [
            one
            for one in self.trials[1:]
            if len(one.turns) == TURNS
            and one.meets >= self.own.meets
            and (min(one.worth()) > floor or one.meets > self.own.meets)
        ]
        return max(better, key=lambda one: (one.meets, one.mean_worth), default=self.own)

    def is_efficient(self, trial: Trial) -> bool:
        """Whether no other setting is at least as good in every respect and better in one."""
        costs = trial.costs()
        others = (one.costs() for one in self.trials if one is not trial)
        return not any(
            all(a <= b for a, b in zip(other, costs, strict=True)) and other != costs
            for other in others
        )

    def steps(self) -> list[str]:
        """What to do to serve the build with the recommended setting; empty where it has it."""
        changes = self.best.setting.changes(self.own.setting)
        repository = self.directory / REPOSITORY
        return [TEXTS[name].format(repository=repository, value=v) for name, v in changes.items()]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "build": str(self.directory),
            "settings": [self._row(trial) for trial in self.trials],
            "left_out": [{**asdict(s), "reason": reason} for s, reason in self.left_out.items()],
            "recommended": asdict(self.best.setting),
            "steps": self.steps(),
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        return {
            **asdict(trial.setting),
            "efficient": self.is_efficient(trial),
            "meets_slo": trial.meets if trial.turns[0].objective else None,
            "memory": trial.memory,
            "memory_when_full": trial.full,
            "turns": [one.to_json() for one in trial.turns],
        }


TEXTS: Mapping[str, str] = {
    "slots": "{repository}/instructblip/config.pbtxt: set the parameter slots to {value}, and slots"
    " in the parameter limits; or build with --slots {value}",
    "max_batch": "{repository}/vision_encoder/config.pbtxt and {repository}/qformer/config.pbtxt:"
    " max_batch_size: {value}; or build with --max-batch {value}",
    "queue_delay_us": "{repository}/vision_encoder/config.pbtxt and"
    " {repository}/qformer/config.pbtxt: max_queue_delay_microseconds: {value}",
}
"""Field of `Setting` to what changes it; every new build has to be edited again."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How a build is measured.

    Attributes:
        load: that every setting gets, in every turn.
        mix: what is asked.
        objective: that answers must meet; `None` takes the one with most answers.
        limit_s: seconds after which no further measurement begins.
        timeout_s: for each answer.
        triton: as in `ServerOptions`.
    """

    load: Closed | Open
    mix: Mix
    objective: Objective | None
    limit_s: float
    timeout_s: float
    triton: Path | None = None


def tune(directory: Path, options: TuneOptions, progress: Progress) -> Tuning:
    """Measures a build under several settings.

    Raises:
        IblipError: the build cannot be served as it is, or answers nothing.
    """
    manifest = Manifest.read(directory)
    trials: list[Trial] = []
    left_out: dict[Setting, str] = {}
    for setting in candidates(setting_of(directory), manifest):
        full = memory_when_full(directory, manifest, setting)
        if trials and not fits(full):
            left_out[setting] = "its slots may not fit into the memory that is free here"
        else:
            trials.append(Trial(setting=setting, full=full))
    progress.note(
        f"{len(trials)} settings, {TURNS} turns of {options.load.seconds:g} s and a start of the"
        f" server each; nothing new begins after {options.limit_s / 60:g} min"
    )
    started, longest_s = time.monotonic(), 0.0
    rounds = [(turn, trial) for turn in range(TURNS) for trial in trials]
    for number, (turn, trial) in enumerate(rounds):
        begun = time.monotonic()
        if number and begun - started + longest_s > options.limit_s:
            break
        title = f"turn {turn + 1} of {TURNS}: {trial.setting.text(trials[0].setting)}"
        _measure(directory, manifest, trial, options, progress, title)
        longest_s = max(longest_s, time.monotonic() - begun)
        if number == 0:
            left_s = min(longest_s * (len(rounds) - 1), options.limit_s)
            progress.note(f"about {left_s / 60:.1f} min for the other {len(rounds) - 1}")
    for trial in trials:
        if not trial.turns:
            left_out[trial.setting] = "the time was over"
    measured = [trial for trial in trials if trial.turns]
    return Tuning(directory=directory, trials=measured, left_out=left_out)


def _measure(
    directory: Path,
    manifest: Manifest,
    trial: Trial,
    options: TuneOptions,
    progress: Progress,
    title: str,
) -> None:
    environment = environment_of_models(manifest)
    served = ServerOptions(triton=options.triton, environment=environment)
    with (
        progress.stage(title),
        build_with(directory, trial.setting) as build,
        TritonServer(build / REPOSITORY, served, progress=lambda _: None) as server,
        Bench(
            {"url": server.grpc_url}, options.mix, Silent(), timeout_s=options.timeout_s
        ) as bench,
    ):
        bench.warm_up(trial.setting.slots)
        run = bench.run(options.load)
        trial.memory = max(trial.memory, resident(server.pid)["pss"])
    check_answered(run)
    trial.turns.append(Figures(run, options.objective))


def lines_of_tuning(tuning: Tuning) -> Iterator[tuple[str, ...]]:
    """A row of words for each setting, under the names of the columns."""
    first = tuning.own.turns[0]
    worth = "answers/s" if first.objective is None else "goodput/s"
    yield ("", "slots", "batch", "delay", worth, "ttft", "token", "whole", "memory", "if full", "")
    for trial in tuning.trials:
        setting = trial.setting
        times = (
            trial.time(of)
            for of in (lambda one: one.first_s, lambda one: one.token_s, lambda one: one.last_s)
        )
        yield (
            "->" if trial is tuning.best else " *" if tuning.is_efficient(trial) else "",
            str(setting.slots),
            str(setting.max_batch),
            f"{setting.queue_delay_us} us",
            "/".join(f"{value:.2f}" for value in trial.worth()),
            *("-" if seconds is None else f"{seconds * 1000:.1f} ms" for seconds in times),
            f"{trial.memory >> 20} MiB",
            "-" if trial.full is None else f"{trial.full >> 20} MiB",
            "" if trial.meets else "misses the SLO",
        )
