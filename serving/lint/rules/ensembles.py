"""Rules of an ensemble as a whole: what it may not hold, and how its tensors flow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.rules.batching import streams
from iblip.serving.lint.text_format import Entry, Step

SCHEDULING = "ensemble_scheduling"

FORBIDDEN = {
    "instance_group": "An ensemble runs nothing itself.",
    "optimization": "An ensemble runs nothing itself.",
    "model_warmup": "An ensemble runs nothing itself: its steps are warmed up.",
    "backend": "An ensemble's platform is `ensemble`, and it has no backend.",
}
"""Fields that an ensemble may not have, and why."""


def steps_of(model: Model) -> Iterator[tuple[int, Any]]:
    """Its steps, numbered; none of another model."""
    yield from enumerate(model.config.ensemble_scheduling.step if model.ensemble else ())


def step_line(model: Model, index: int, side: str = "", key: str = "") -> int:
    """The line of a step, or of an entry of its input_map or output_map."""
    inner: tuple[Step, ...] = (side, Entry(key)) if side else ()
    return model.line(SCHEDULING, "step", index, *inner)


def _forbidden(field: str) -> Callable[[Model, Repository], Iterator[Fault]]:
    def check(model: Model, repository: Repository) -> Iterator[Fault]:
        if model.ensemble and field in {one.name for one, _ in model.config.ListFields()}:
            yield Fault(f"{field} on an ensemble", model.line(field))

    return check


def _complete(model: Model, repository: Repository) -> Iterator[Fault]:
    scheduling = SCHEDULING in model.tree.fields
    ensemble = model.config.platform == "ensemble"
    if ensemble and not scheduling:
        yield Fault(f"platform is ensemble, and there is no {SCHEDULING}", model.line("platform"))
    if scheduling and not ensemble:
        message = f"{SCHEDULING} where platform is {model.config.platform!r}; wanted 'ensemble'"
        yield Fault(message, model.line(SCHEDULING))
    if scheduling and not model.config.ensemble_scheduling.step:
        yield Fault("there is no step", model.line(SCHEDULING))
    for index, step in steps_of(model):
        for side in ("input_map", "output_map"):
            if not getattr(step, side):
                message = f"the step {step.model_name or index} has no {side}"
                yield Fault(message, step_line(model, index))


def _unmade(model: Model, repository: Repository) -> Iterator[Fault]:
    made = {tensor.name for tensor in model.config.input}
    made |= {name for _, step in steps_of(model) for name in step.output_map.values()}
    for index, step in steps_of(model):
        for key, name in sorted(step.input_map.items()):
            if name not in made:
                line = step_line(model, index, "input_map", key)
                yield Fault(f"{step.model_name} reads {name!r}, which nothing makes", line)
    for index, tensor in enumerate(model.config.output if model.ensemble else ()):
        if tensor.name not in made:
            line = model.line("output", index)
            yield Fault(f"the output {tensor.name!r} is made by no step", line)


def _twice(model: Model, repository: Repository) -> Iterator[Fault]:
    made: Counter[str] = Counter()
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            made[name] += 1
            if made[name] == 2:
                line = step_line(model, index, "output_map", key)
                yield Fault(f"{step.model_name} makes {name!r}, which is made already", line)


def _overwritten(model: Model, repository: Repository) -> Iterator[Fault]:
    inputs = {tensor.name for tensor in model.config.input}
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            if name in inputs:
                line = step_line(model, index, "output_map", key)
                yield Fault(f"{step.model_name} makes {name!r}, which is an input", line)


def _unused(model: Model, repository: Repository) -> Iterator[Fault]:
    read = {name for _, step in steps_of(model) for name in step.input_map.values()}
    for index, tensor in enumerate(model.config.input if model.ensemble else ()):
        if tensor.name not in read:
            yield Fault(f"no step reads the input {tensor.name!r}", model.line("input", index))
    read |= {tensor.name for tensor in model.config.output}
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            if name not in read:
                line = step_line(model, index, "output_map", key)
                yield Fault(f"nothing reads {name!r}, which {step.model_name} makes", line)


def _cycle(model: Model, repository: Repository) -> Iterator[Fault]:
    ready = {tensor.name for tensor in model.config.input}
    waiting = dict(steps_of(model))
    made = {name for step in waiting.values() for name in step.output_map.values()}
    while True:
        able = [i for i, step in waiting.items() if not _wants(step, ready) & made]
        if not able:
            break
        ready |= {name for index in able for name in waiting.pop(index).output_map.values()}
    for index, step in waiting.items():
        missing = ", ".join(sorted(_wants(step, ready)))
        message = f"{step.model_name} waits for {missing}, which is made from its own outputs"
        yield Fault(message, step_line(model, index))


def _wants(step: Any, ready: set[str]) -> set[str]:
    return set(step.input_map.values()) - ready


def _circle(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step in steps_of(model):
        if model.name in _reached(step.model_name, repository):
            message = f"the step {step.model_name} leads back to {model.name}"
            yield Fault(message, step_line(model, index))


def _reached(name: str, repository: Repository) -> set[str]:
    found, waiting = set[str](), [name]
    while waiting:
        name = waiting.pop()
        model = repository.models.get(name)
        if name not in found and model is not None and model.config is not None:
            waiting += [step.model_name for _, step in steps_of(model)]
        found.add(name)
    return found


def _declared(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.ensemble and "model_transaction_policy" in model.tree.fields:
        told, true = model.decoupled, streams(model, repository)
        if told != true:
            words = {True: "decoupled", False: "not decoupled"}
            yield Fault(
                f"it says that it is {words[told]}; by its steps it is {words[true]}",
                model.line("model_transaction_policy"),
            )


def _joined(model: Model, repository: Repository) -> Iterator[Fault]:
    """Every response of a decoupled step starts what follows: two such cannot meet."""
    labels = dict.fromkeys((tensor.name for tensor in model.config.input), 0)
    waiting = dict(steps_of(model))
    while able := [i for i, step in waiting.items() if not _wants(step, set(labels))]:
        for index in able:
            step = waiting.pop(index)
            found = {labels[name] for name in step.input_map.values()}
            if len(found) > 1:
                message = f"{step.model_name} reads tensors of different decoupled steps"
                yield Fault(message, step_line(model, index))
            inner = repository.models.get(step.model_name)
            label = max(found, default=0)
            if inner is not None and streams(inner, repository):
                label = index + 1
            labels.update(dict.fromkeys(step.output_map.values(), label))
    if len({labels.get(tensor.name, 0) for tensor in model.config.output}) > 1:
        yield Fault("its outputs are those of different decoupled steps", model.line("output"))


RULES = (
    *(
        Rule(
            id=f"ensemble-{field.replace('_', '-').removeprefix('model-')}",
            severity=Severity.ERROR,
            title=f"An ensemble has no `{field}`.",
            why=f"{why} It is not loaded.",
            mend="Take it out; what it was for belongs to the models of the steps.",
            server=Verdict.REFUSES,
            check=_forbidden(field),
        )
        for field, why in FORBIDDEN.items()
    ),
    Rule(
        id="ensemble-steps",
        severity=Severity.ERROR,
        title="An ensemble has the platform `ensemble`, and steps with both maps.",
        why="The model is not loaded.",
        mend='Write platform: "ensemble" and ensemble_scheduling with a step or more, each with '
        "input_map and output_map.",
        server=Verdict.REFUSES,
        check=_complete,
    ),
    Rule(
        id="tensor-unmade",
        severity=Severity.ERROR,
        title="What a step reads, and what an ensemble gives, is an input or made by a step.",
        why="The ensemble is not loaded.",
        mend="Map the output of a step to it, or spell it as that is spelt.",
        server=Verdict.REFUSES,
        check=_unmade,
    ),
    Rule(
        id="tensor-made-twice",
        severity=Severity.ERROR,
        title="A tensor of an ensemble is made by one step.",
        why="The ensemble is not loaded.",
        mend="Give each its own name.",
        server=Verdict.REFUSES,
        check=_twice,
    ),
    Rule(
        id="input-made-again",
        severity=Severity.WARNING,
        title="No step makes what is an input of the ensemble.",
        why="Which of the two a later step reads depends on which is there first.",
        mend="Give the step's output a name of its own.",
        server=Verdict.ACCEPTS,
        check=_overwritten,
    ),
    Rule(
        id="tensor-unused",
        severity=Severity.ERROR,
        title="Every tensor of an ensemble is read by a step, or given.",
        why="The ensemble is not loaded.",
        mend="Take the mapping out: a step's output need not be mapped.",
        server=Verdict.REFUSES,
        check=_unused,
    ),
    Rule(
        id="tensor-cycle",
        severity=Severity.ERROR,
        title="No step waits for what is made from its own outputs.",
        why="It would never run: the ensemble is not loaded.",
        mend="Break the circle.",
        server=Verdict.REFUSES,
        check=_cycle,
    ),
    Rule(
        id="ensemble-circle",
        severity=Severity.ERROR,
        title="No ensemble is a step of itself, nor of its steps.",
        why="It would never end: none of them is loaded.",
        mend="Break the circle.",
        server=Verdict.REFUSES,
        check=_circle,
    ),
    Rule(
        id="ensemble-decoupled",
        severity=Severity.WARNING,
        title="Whether an ensemble is decoupled follows from its steps.",
        why="The server goes by the steps: who reads the line is misled.",
        mend="Take model_transaction_policy out of the ensemble.",
        server=Verdict.ACCEPTS,
        check=_declared,
    ),
    Rule(
        id="streams-joined",
        severity=Severity.ERROR,
        title="Tensors that meet in a step, or in the answer, come from the same decoupled step.",
        why="They come any number of times each, so which belong together is not told: the "
        "ensemble is not loaded.",
        mend="Pass what is wanted through the decoupled step, or make it the last.",
        server=Verdict.REFUSES,
        check=_joined,
    ),
)
