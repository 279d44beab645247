"""Rules about models with sequence batching: their control tensors and their state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository, value_name
from iblip.serving.lint.rule import Rule, Severity, Verdict

PAIRS = ("int32_false_true", "fp32_false_true", "bool_false_true")
"""Fields with a control's values for false and for true."""

CORRELATION = "CONTROL_SEQUENCE_CORRID"
"""The one control that has a data type instead of such a pair."""

CORRELATION_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def _controls(model: Model) -> Iterator[tuple[str, Any, int]]:
    """Each control: the name of its kind, the control, and its line."""
    from tritonclient.grpc import model_config_pb2

    kinds = model_config_pb2.ModelSequenceBatching.Control.Kind
    for number, tensor in enumerate(model.config.sequence_batching.control_input):
        for index, control in enumerate(tensor.control):
            place = ("sequence_batching", "control_input", number, "control", index)
            yield value_name(kinds, control.kind), control, model.line(*place)


def _check_sequence_control(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    seen: Counter[str] = Counter()
    for kind, control, line in _controls(model):
        seen[kind] += 1
        if seen[kind] == 2:
            yield Fault(f"{kind} is on two tensors", line)
        if kind == CORRELATION:
            name = value_name(model_config_pb2.DataType, control.data_type)
            if name not in CORRELATION_TYPES:
                yield Fault(
                    f"{kind} is {name}; expected one of {', '.join(CORRELATION_TYPES)}", line
                )
            continue
        pairs = {name: len(getattr(control, name)) for name in PAIRS if getattr(control, name)}
        if list(pairs.values()) != [2]:
            has = ", ".join(f"{count} in {name}" for name, count in pairs.items()) or "no values"
            yield Fault(f"{kind} has {has}; expected 2 in one of {', '.join(PAIRS)}", line)


def _check_sequence_state(model: Model, repository: Repository) -> Iterator[Fault]:
    for number, state in enumerate(model.config.sequence_batching.state):
        for index, initial in enumerate(state.initial_state):
            path = model.path / "initial_state" / initial.data_file
            if initial.WhichOneof("state_data") == "data_file" and not path.is_file():
                place = ("sequence_batching", "state", number, "initial_state", index, "data_file")
                shown = path.relative_to(repository.path)
                yield Fault(f"there is no file {shown}", model.line(*place))


RULES = (
    Rule(
        id="sequence-control",
        severity=Severity.ERROR,
        title="A sequence control is on one tensor, with its two values or its data type.",
        why="The model is not loaded.",
        mend="Write one of int32_false_true, fp32_false_true and bool_false_true with two values; "
        "for CONTROL_SEQUENCE_CORRID a data_type.",
        server=Verdict.REFUSES,
        check=_check_sequence_control,
    ),
    Rule(
        id="sequence-state",
        severity=Severity.ERROR,
        title="The file with a state's initial values is in the model's folder `initial_state`.",
        why="The model is not loaded.",
        mend="Put it there, or write zero_data: true.",
        server=Verdict.REFUSES,
        check=_check_sequence_state,
    ),
)
