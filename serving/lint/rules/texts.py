"""Rules of the text of a config: whether Triton can read it at all."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from serving.lint.reading import Model, Repository
from serving.lint.rule import Fault, Rule, Severity, Verdict
from serving.lint.text_format import Node

SCHEDULERS = ("ensemble_scheduling", "dynamic_batching", "sequence_batching")
"""Fields of which a config has one at most."""


def _missing(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.fault is not None and model.fault.line is None:
        yield model.fault


def _syntax(model: Model, repository: Repository) -> Iterator[Fault]:
    understood = (*_values(model, repository), *_schedulers(model, repository))
    if model.fault is not None and model.fault.line is not None and not understood:
        yield model.fault


def _fields(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _described(model.tree, _descriptor()):
        if name.isidentifier() and name not in message.fields_by_name:
            near = get_close_matches(name, message.fields_by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield Fault(f"{message.name} has no field {name!r}{hint}", line=node.line)


def _values(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _described(model.tree, _descriptor()):
        field = message.fields_by_name.get(name)
        if field is None or field.enum_type is None or not node.text:
            continue
        known = [value.name for value in field.enum_type.values]
        if node.text not in known and not node.text.lstrip("-").isdigit():
            near = get_close_matches(node.text, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            yield Fault(f"{name} has no value {node.text}; {hint}", line=node.line)


def _schedulers(model: Model, repository: Repository) -> Iterator[Fault]:
    there = [name for name in SCHEDULERS if name in model.tree.fields]
    if len(there) > 1:
        on = "an ensemble" if there[0] == SCHEDULERS[0] else "one model"
        yield Fault(f"{there[1]} and {there[0]} on {on}", line=model.line(there[1]))


def _descriptor() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelConfig.DESCRIPTOR


def _described(tree: Node, message: Any) -> Iterator[tuple[str, Node, Any]]:
    """Every field with the description of its message; none below a field that is not known."""
    for name, nodes in tree.fields.items():
        field = message.fields_by_name.get(name)
        for node in nodes:
            yield name, node, message
            if field is not None and field.message_type is not None:
                yield from _described(node, field.message_type)


RULES = (
    Rule(
        id="config-missing",
        severity=Severity.WARNING,
        title="A model has a `config.pbtxt` that can be read.",
        why="A server in production runs with --disable-auto-complete-config, and guesses nothing.",
        mend="Write a config.pbtxt, or move a folder that is no model out of the repository.",
        server=Verdict.REFUSES,
        check=_missing,
        anyway=True,
    ),
    Rule(
        id="config-syntax",
        severity=Severity.ERROR,
        title="A config is text of protobuf's text format.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Mend the line.",
        server=Verdict.REFUSES,
        check=_syntax,
        anyway=True,
    ),
    Rule(
        id="unknown-field",
        severity=Severity.ERROR,
        title="Every field is one that Triton's ModelConfig has.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Spell the field as Triton does, or take it out.",
        server=Verdict.REFUSES,
        check=_fields,
        anyway=True,
    ),
    Rule(
        id="unknown-value",
        severity=Severity.ERROR,
        title="Every kind, data type or action is one that Triton has.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Use one of the values that Triton has.",
        server=Verdict.REFUSES,
        check=_values,
        anyway=True,
    ),
    Rule(
        id="two-schedulers",
        severity=Severity.ERROR,
        title="A config has one of ensemble_scheduling, dynamic_batching and sequence_batching.",
        why="They are alternatives: the server says that it failed to read the file, and no more.",
        mend="Keep one. The models of an ensemble's steps batch; the ensemble does not.",
        server=Verdict.REFUSES,
        check=_schedulers,
        anyway=True,
    ),
)
