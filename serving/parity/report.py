"""The parts of the parity report. Each has a `to_json`, from which the page is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from iblip.engines.kinds import OPENVINO

Sense = Literal["most", "least"]

WORDS: Mapping[bool | None, str] = {True: "pass", False: "FAIL", None: "skipped"}
"""The words for a verdict, in the terminal and on the page."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A measured number and its limit. True if the number is within the limit.

    Attributes:
        name: what was measured, for people, with its unit; the same for every build.
        where: the block or the batch at which it was measured; may be empty.
        value: the number.
        limit: `None` if the number is only reported.
        sense: whether the limit is the `most` or the `least` that the number may be.
    """

    name: str
    value: float
    limit: float | None = None
    sense: Sense = "most"
    where: str = ""

    def __bool__(self) -> bool:
        if self.limit is None:
            return True
        return self.value <= self.limit if self.sense == "most" else self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        """Every field, JSON-ready; infinite values are text."""
        value = self.value if abs(self.value) != float("inf") else str(self.value)
        return {
            "name": self.name,
            **({"where": self.where} if self.where else {}),
            "value": value,
            "limit": self.limit,
            "sense": self.sense,
            "passed": bool(self),
        }


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """The result of one stage for one build. True if every check passes.

    Attributes:
        checks: the stage's numbers.
        details: the data behind them, JSON-ready; each stage has its own.
        skipped: why nothing was compared; empty if it was.
        fault: where the error begins, if the stage can tell; empty if there is none.
        seconds: how long it took.
    """

    checks: tuple[Check, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""
    fault: str = ""
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return all(self.checks)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready. `"passed"` is null for a skipped stage."""
        if self.skipped:
            return {"passed": None, "skipped": self.skipped}
        fault = {"fault": self.fault} if self.fault else {}
        return {
            "passed": bool(self),
            **fault,
            "seconds": round(self.seconds, 2),
            "checks": [check.to_json() for check in self.checks],
            **self.details,
        }


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Every stage of one build.

    Attributes:
        build: its directory.
        label: distinguishes it from the others: its precision, in short.
        precision: by component.
        stages: by name, in order.
        engines: by component: the kinds that the build is for. Graphs are compared on ONNX
            Runtime's CPU provider, whatever they are.
        size: bytes of the build's files, weights included, each file counted once.
        answer_s: median seconds of a greedy answer on this machine, from image file to text;
            `None` if none was asked for.
    """

    build: str
    label: str
    precision: Mapping[str, str]
    stages: Mapping[str, StageReport]
    engines: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    answer_s: float | None = None

    def __bool__(self) -> bool:
        return all(self.stages.values())

    @property
    def first_out(self) -> str:
        """The first block, in the order of the data flow, whose error leaves its band; or empty."""
        return next((stage.fault for stage in self.stages.values() if stage.fault), "")

    @property
    def elsewhere(self) -> str:
        """That nothing ran on the engines of the build, where these are others; or empty."""
        return engines_left_out(self.build, self.engines)

    @property
    def verdict(self) -> str:
        """Which stages exceed their thresholds, and where the error begins."""
        failed = ", ".join(name for name, stage in self.stages.items() if not stage)
        where = f"; the error leaves its band in {self.first_out}" if self.first_out else ""
        return f"{self.build} exceeds the thresholds of {failed}{where}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "build": self.build,
            "label": self.label,
            "precision": dict(self.precision),
            "engines": dict(self.engines),
            "compared_on": COMPARED_ON,
            "elsewhere": self.elsewhere or None,
            "passed": bool(self),
            "first_out": self.first_out or None,
            "bytes": self.size,
            "answer_s": self.answer_s,
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
        }


FORMAT = 1
"""Version of the JSON file."""

COMPARED_ON = "onnxruntime"
"""The kind of engine on which every build is compared: ONNX Runtime's CPU provider."""


def engines_left_out(build: str, engines: Mapping[str, str]) -> str:
    """A sentence on the engines of a build that a comparison on the CPU leaves out; or empty.

    Args:
        build: its directory.
        engines: by component: the kinds that it is for.
    """
    others = [kind for kind in dict.fromkeys(engines.values()) if kind != COMPARED_ON]
    if not others:
        return ""
    absent = [kind for kind in others if kind != OPENVINO]
    what = (
        f"nothing ran on {' or '.join(absent)}, which the build is for"
        if absent
        else f"{OPENVINO}, which the build is for, ran for its answers alone"
    )
    return (
        f"The graphs ran on ONNX Runtime's CPU provider: {what}. "
        f"`iblip prove {build}` compares it there."
    )


def number(value: float) -> str:
    """A number for people: four significant figures, small ones as powers of ten."""
    if value != value or abs(value) == float("inf"):
        return str(value)
    if 0 < abs(value) < 1e-3:
        figures, _, power = f"{value:.2e}".partition("e")
        return f"{figures.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example with everybody's answer, for people to look at.

    Attributes:
        example: its name.
        prompt: the question.
        image: a small copy of the image, as a `data:` address.
        reference: transformers' greedy answer.
        texts: each build's greedy answer, in the order of the builds.
        answer: the right answer; `None` if it is not known.
    """

    example: str
    prompt: str
    image: str
    reference: str
    texts: tuple[str, ...]
    answer: str | None = None

    @property
    def same(self) -> bool:
        """Whether all builds answer as transformers does."""
        return all(text == self.reference for text in self.texts)

    def to_json(self) -> dict[str, Any]:
        """Every field, JSON-ready."""
        return {
            "example": self.example,
            "prompt": self.prompt,
            "image": self.image,
            "reference": self.reference,
            "texts": list(self.texts),
            "answer": self.answer,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Builds of one checkpoint. True if each is within its thresholds.

    Attributes:
        checkpoint: its name.
        model: where it was read from.
        synthetic: whether its weights are random, so that answers mean nothing.
        reference: how transformers ran (`whole`, or `streamed` layer by layer), and why.
        examples: how many were used; 0 if there were none.
        builds: in the order in which they were given.
        created: UTC, ISO 8601.
        tools: versions of the libraries involved.
        samples: a few examples with all answers; those that differ come first.
    """

    checkpoint: str
    model: str
    synthetic: bool
    reference: Mapping[str, str]
    examples: int
    builds: tuple[BuildReport, ...]
    created: str
    tools: Mapping[str, str]
    samples: tuple[Sample, ...] = ()

    def __bool__(self) -> bool:
        return all(self.builds)

    @property
    def verdict(self) -> str:
        """One sentence: whether the builds pass, and how many answers are the same."""
        failed = [build for build in self.builds if not build]
        if failed:
            return f"{WORDS[False]}: {'; '.join(build.verdict for build in failed)}"
        texts = [(build.label, build.stages.get("text")) for build in self.builds]
        told = [
            f"{stage.details['same_text']} of {stage.details['examples']} ({label})"
            for label, stage in texts
            if stage and "same_text" in stage.details
        ]
        what = "the build" if len(self.builds) == 1 else "every build"
        answers = f"; answers equal to transformers': {', '.join(told)}" if told else ""
        return f"{WORDS[True].upper()}: {what} is within every limit{answers}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": FORMAT,
            "checkpoint": self.checkpoint,
            "model": self.model,
            "synthetic": self.synthetic,
            "reference": dict(self.reference),
            "examples": self.examples,
            "created": self.created,
            "tools": dict(self.tools),
            "passed": bool(self),
            "verdict": self.verdict,
            "samples": [sample.to_json() for sample in self.samples],
            "builds": [build.to_json() for build in self.builds],
        }
