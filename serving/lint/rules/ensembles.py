"""Rules about an ensemble as a whole: the fields it may not have, and how its tensors flow."""

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
    "instance_group": "An ensemble itself runs nothing.",
    "optimization": "An ensemble itself runs nothing.",
    "model_warmup": "An ensemble itself runs nothing: its steps are warmed up.",
    "backend": "An ensemble has the platform `ensemble` and no backend.",
}
"""Fields that an ensemble may not have, and why."""


def steps_of(model: Model) -> Iterator[tuple[int, Any]]:
    """The steps of an ensemble with their indices; empty for other models."""
    yield from enumerate(model.config.ensemble_scheduling.step if model.ensemble else ())


def step_line(model: Model, index: int, side: str = "", key: str = "") -> int:
    """The line of a step, or of an entry of its input_map or output_map."""
    inner: tuple[Step, ...] = (side, Entry(key)) if side else ()
    return model.line(SCHEDULING, "step", index, *inner)


def _check_absent(field: str) -> Callable[[Model, Repository], Iterator[Fault]]:
    def check(model: Model, repository: Repository) -> Iterator[Fault]:
        if model.ensemble and field in {
            descriptor.name for descriptor, _ in model.config.ListFields()
        }:
            yield Fault(f"{field} on an ensemble", model.line(field))

    return check


def _check_ensemble_steps(model: Model, repository: Repository) -> Iterator[Fault]:
    scheduling = SCHEDULING in model.tree.fields
    ensemble = model.config.platform == "ensemble"
    if ensemble and not scheduling:
        yield Fault(f"platform is ensemble, but there is no {SCHEDULING}", model.line("platform"))
    if scheduling and not ensemble:
        message = f"{SCHEDULING} where platform is {model.config.platform!r}; expected 'ensemble'"
        yield Fault(message, model.line(SCHEDULING))
    if scheduling and not model.config.ensemble_scheduling.step:
        yield Fault("the ensemble has no steps", model.line(SCHEDULING))
    for index, step in steps_of(model):
        for side in ("input_map", "output_map"):
            if not getattr(step, side):
                message = f"the step {step.model_name or index} has no {side}"
                yield Fault(message, step_line(model, index))


def _check_tensor_unmade(model: Model, repository: Repository) -> Iterator[Fault]:
    known = {tensor.name for tensor in model.config.input}
    known |= {name for _, step in steps_of(model) for name in step.output_map.values()}
    for index, step in steps_of(model):
        for key, name in sorted(step.input_map.items()):
            if name not in known:
                line = step_line(model, index, "input_map", key)
                yield Fault(f"{step.model_name} reads {name!r}, which nothing produces", line)
    for index, tensor in enumerate(model.config.output if model.ensemble else ()):
        if tensor.name not in known:
            line = model.line("output", index)
            yield Fault(f"no step produces the output {tensor.name!r}", line)


def _check_tensor_made_twice(model: Model, repository: Repository) -> Iterator[Fault]:
    producers: Counter[str] = Counter()
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            producers[name] += 1
            if producers[name] == 2:
                line = step_line(model, index, "output_map", key)
                yield Fault(
                    f"{step.model_name} produces {name!r}, which another step produces as well",
                    line,
                )


def _check_input_made_again(model: Model, repository: Repository) -> Iterator[Fault]:
    inputs = {tensor.name for tensor in model.config.input}
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            if name in inputs:
                line = step_line(model, index, "output_map", key)
                yield Fault(
                    f"{step.model_name} produces {name!r}, which is an input of the ensemble", line
                )


def _check_tensor_unused(model: Model, repository: Repository) -> Iterator[Fault]:
    read = {name for _, step in steps_of(model) for name in step.input_map.values()}
    for index, tensor in enumerate(model.config.input if model.ensemble else ()):
        if tensor.name not in read:
            yield Fault(f"no step reads the input {tensor.name!r}", model.line("input", index))
    read |= {tensor.name for tensor in model.config.output}
    for index, step in steps_of(model):
        for key, name in sorted(step.output_map.items()):
            if name not in read:
                line = step_line(model, index, "output_map", key)
                yield Fault(f"nothing reads {name!r}, which {step.model_name} produces", line)


def _check_tensor_cycle(model: Model, repository: Repository) -> Iterator[Fault]:
    ready = {tensor.name for tensor in model.config.input}
    waiting = dict(steps_of(model))
    produced = {name for step in waiting.values() for name in step.output_map.values()}
    while True:
        able = [i for i, step in waiting.items() if not _missing_inputs(step, ready) & produced]
        if not able:
            break
        ready |= {name for index in able for name in waiting.pop(index).output_map.values()}
    for index, step in waiting.items():
        missing = ", ".join(sorted(_missing_inputs(step, ready)))
        message = f"{step.model_name} waits for {missing}, which depends on its own outputs"
        yield Fault(message, step_line(model, index))


def _missing_inputs(step: Any, ready: set[str]) -> set[str]:
    return set(step.input_map.values()) - ready


def _check_ensemble_circle(model: Model, repository: Repository) -> Iterator[Fault]:
    for index, step in steps_of(model):
        if model.name in _models_below(step.model_name, repository):
            message = f"the step {step.model_name} contains {model.name} again"
            yield Fault(message, step_line(model, index))


def _models_below(name: str, repository: Repository) -> set[str]:
    visited, waiting = set[str](), [name]
    while waiting:
        name = waiting.pop()
        model = repository.models.get(name)
        if name not in visited and model is not None and model.config is not None:
            waiting += [step.model_name for _, step in steps_of(model)]
        visited.add(name)
    return visited


def _check_ensemble_decoupled(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.ensemble and "model_transaction_policy" in model.tree.fields:
        declared, actual = model.decoupled, streams(model, repository)
        if declared != actual:
            words = {True: "decoupled", False: "not decoupled"}
            yield Fault(
                f"the config says {words[declared]}; by its steps the ensemble is {words[actual]}",
                model.line("model_transaction_policy"),
            )


def _check_streams_joined(model: Model, repository: Repository) -> Iterator[Fault]:
    """Each response of a decoupled step triggers the next steps: two streams cannot meet."""
    labels = dict.fromkeys((tensor.name for tensor in model.config.input), 0)
    waiting = dict(steps_of(model))
    while able := [i for i, step in waiting.items() if not _missing_inputs(step, set(labels))]:
        for index in able:
            step = waiting.pop(index)
            sources = {labels[name] for name in step.input_map.values()}
            if len(sources) > 1:
                message = f"{step.model_name} reads tensors from different decoupled steps"
                yield Fault(message, step_line(model, index))
            inner = repository.models.get(step.model_name)
            label = max(sources, default=0)
            if inner is not None and streams(inner, repository):
                label = index + 1
            labels.update(dict.fromkeys(step.output_map.values(), label))
    if len({labels.get(tensor.name, 0) for tensor in model.config.output}) > 1:
        yield Fault("its outputs come from different decoupled steps", model.line("output"))


RULES = (
    *(
        Rule(
            id=f"ensemble-{field.replace('_', '-').removeprefix('model-')}",
            severity=Severity.ERROR,
            title=f"An ensemble has no `{field}`.",
            why=f"{why} The ensemble is not loaded.",
            mend="Remove it, and set it for the models of the steps instead.",
            server=Verdict.REFUSES,
            check=_check_absent(field),
        )
        for field, why in FORBIDDEN.items()
    ),
    Rule(
        id="ensemble-steps",
        severity=Severity.ERROR,
        title="An ensemble has the platform `ensemble`, and steps with both maps.",
        why="The model is not loaded.",
        mend='Write platform: "ensemble" and ensemble_scheduling with at least one step, each with '
        "input_map and output_map.",
        server=Verdict.REFUSES,
        check=_check_ensemble_steps,
    ),
    Rule(
        id="tensor-unmade",
        severity=Severity.ERROR,
        title="What a step reads and what an ensemble returns is an input or produced by a step.",
        why="The ensemble is not loaded.",
        mend="Map a step's output to it, or correct the spelling of its name.",
        server=Verdict.REFUSES,
        check=_check_tensor_unmade,
    ),
    Rule(
        id="tensor-made-twice",
        severity=Severity.ERROR,
        title="Only one step produces a tensor of an ensemble.",
        why="The ensemble is not loaded.",
        mend="Give each tensor its own name.",
        server=Verdict.REFUSES,
        check=_check_tensor_made_twice,
    ),
    Rule(
        id="input-made-again",
        severity=Severity.WARNING,
        title="No step produces an input of the ensemble.",
        why="Which of the two a later step reads depends on which comes first.",
        mend="Give the step's output a name of its own.",
        server=Verdict.ACCEPTS,
        check=_check_input_made_again,
    ),
    Rule(
        id="tensor-unused",
        severity=Severity.ERROR,
        title="Every tensor of an ensemble is read by a step or returned.",
        why="The ensemble is not loaded.",
        mend="Remove the mapping: a step's output need not be mapped.",
        server=Verdict.REFUSES,
        check=_check_tensor_unused,
    ),
    Rule(
        id="tensor-cycle",
        severity=Severity.ERROR,
        title="No step waits for a tensor that depends on its own outputs.",
        why="The step would never run: the ensemble is not loaded.",
        mend="Break the cycle.",
        server=Verdict.REFUSES,
        check=_check_tensor_cycle,
    ),
    Rule(
        id="ensemble-circle",
        severity=Severity.ERROR,
        title="No ensemble is a step of itself or of its own steps.",
        why="A request would never end: none of the models is loaded.",
        mend="Break the cycle.",
        server=Verdict.REFUSES,
        check=_check_ensemble_circle,
    ),
    Rule(
        id="ensemble-decoupled",
        severity=Severity.WARNING,
        title="Whether an ensemble is decoupled follows from its steps.",
        why="The server goes by the steps, so the declaration misleads its readers.",
        mend="Remove model_transaction_policy from the ensemble.",
        server=Verdict.ACCEPTS,
        check=_check_ensemble_decoupled,
    ),
    Rule(
        id="streams-joined",
        severity=Severity.ERROR,
        title="Tensors that meet in a step, or in the answer, come from the same decoupled step.",
        why="Each stream may have any number of responses, so it is undefined which belong "
        "together: the ensemble is not loaded.",
        mend="Pass the other tensor through the decoupled step, or make that step the last.",
        server=Verdict.REFUSES,
        check=_check_streams_joined,
    ),
)
