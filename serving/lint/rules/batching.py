"""Rules about batches, queues, response caches and warm-ups."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import Model, Repository, value_name
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.tensor_shapes import fits
from iblip.serving.lint.text_format import Entry

QUEUE = ("max_queue_size", "allow_timeout_override")
"""Fields of a queue policy. `timeout_action` may be left out: REJECT is its default."""

DATA = ("zero_data", "random_data", "input_data_file")
"""Where the values of a warm-up's input come from."""


def _check_batching_without_batches(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.HasField("dynamic_batching") and model.config.max_batch_size == 0:
        yield Fault("dynamic_batching where max_batch_size is 0", model.line("dynamic_batching"))


def _check_preferred_batch_size(model: Model, repository: Repository) -> Iterator[Fault]:
    sizes = model.config.dynamic_batching.preferred_batch_size
    profiles = {name for group in model.config.instance_group for name in group.profile}
    if sizes and not (model.backend == "tensorrt" and len(profiles) > 1):
        line = model.line("dynamic_batching", "preferred_batch_size")
        yield Fault(f"preferred_batch_size is {list(sizes)}", line)


def _check_preferred_batch_size_range(model: Model, repository: Repository) -> Iterator[Fault]:
    most, config = model.config.max_batch_size, model.config
    places = {
        ("dynamic_batching",): config.dynamic_batching,
        ("sequence_batching", "oldest"): config.sequence_batching.oldest,
    }
    for place, batching in places.items():
        for size in batching.preferred_batch_size:
            if not 1 <= size <= most:
                line = model.line(*place, "preferred_batch_size")
                message = f"preferred_batch_size has {size}; expected 1 to max_batch_size, {most}"
                yield Fault(message, line)


def _check_queue_policy(model: Model, repository: Repository) -> Iterator[Fault]:
    batching = model.tree.find("dynamic_batching")
    for name in ("default_queue_policy", "priority_queue_policy"):
        for policy in batching.fields.get(name, []) if batching else ():
            body = policy.find("value") or policy
            missing = [field for field in QUEUE if field not in body.fields]
            if missing:
                yield Fault(f"{name} does not set {', '.join(missing)}", policy.line)


def _check_priority_levels(model: Model, repository: Repository) -> Iterator[Fault]:
    batching = model.config.dynamic_batching
    levels, default = batching.priority_levels, batching.default_priority_level
    expected = f"expected 1 to priority_levels, {levels}"
    if levels > 1 and batching.preserve_ordering:
        line = model.line("dynamic_batching", "preserve_ordering")
        yield Fault(f"preserve_ordering with {levels} priority_levels; expected one", line)
    if levels and not 1 <= default <= levels:
        line = model.line("dynamic_batching", "default_priority_level")
        yield Fault(f"default_priority_level is {default}; {expected}", line)
    for level in batching.priority_queue_policy if levels else ():
        if not 1 <= level <= levels:
            line = model.line("dynamic_batching", "priority_queue_policy", Entry(str(level)))
            yield Fault(f"a policy is for priority {level}; {expected}", line)


def _check_cache_decoupled(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.response_cache.enable and streams(model, repository):
        yield Fault("a response cache on a decoupled model", model.line("response_cache"))


def _check_cache_sequence(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.response_cache.enable and model.config.HasField("sequence_batching"):
        line = model.line("response_cache")
        yield Fault("a response cache on a model that batches sequences", line)


def _check_cache_text(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    text = [t.name for t in model.config.output if t.data_type == model_config_pb2.TYPE_STRING]
    if model.config.response_cache.enable and text:
        line = model.line("response_cache")
        yield Fault(f"a response cache on a model that returns text, {text[0]!r}", line)


def streams(model: Model, repository: Repository, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a model is decoupled, by its config or by that of a step."""
    if model.config is None or model.name in seen:
        return False
    if not model.ensemble:
        return model.decoupled
    names = [step.model_name for step in model.config.ensemble_scheduling.step]
    inner = [repository.models[name] for name in names if name in repository.models]
    return any(streams(one, repository, seen | {model.name}) for one in inner)


def _samples(model: Model) -> Iterator[tuple[int, Any]]:
    yield from enumerate(() if model.ensemble else model.config.model_warmup)


def _check_warmup_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    most = max(1, model.config.max_batch_size)
    for index, sample in _samples(model):
        if sample.batch_size > most:
            yield Fault(
                f"warm-up {sample.name!r} has a batch of {sample.batch_size}; "
                f"max_batch_size is {model.config.max_batch_size}",
                model.line("model_warmup", index, "batch_size"),
            )


def _check_warmup_inputs(model: Model, repository: Repository) -> Iterator[Fault]:
    known = {tensor.name: tensor.optional for tensor in model.config.input}
    for index, sample in _samples(model):
        if not sample.inputs:
            line = model.line("model_warmup", index)
            yield Fault(f"warm-up {sample.name!r} has no inputs", line)
            continue
        missing = [name for name, optional in known.items() if not optional]
        for name in sorted(set(missing) - sample.inputs.keys()):
            line = model.line("model_warmup", index)
            yield Fault(f"warm-up {sample.name!r} has no input {name!r}", line)


def _check_warmup_unknown(model: Model, repository: Repository) -> Iterator[Fault]:
    known = {tensor.name for tensor in model.config.input}
    for index, sample in _samples(model):
        for name in sorted(sample.inputs.keys() - known):
            line = model.line("model_warmup", index, "inputs", Entry(name))
            yield Fault(f"warm-up {sample.name!r} has {name!r}, which is not an input", line)


def _warm_inputs(model: Model) -> Iterator[tuple[str, Any, Any, int]]:
    """For each input of each warm-up: a title, the value, the model's input, and the line."""
    inputs = {tensor.name: tensor for tensor in model.config.input}
    for index, sample in _samples(model):
        for name in sorted(sample.inputs.keys() & inputs.keys()):
            line = model.line("model_warmup", index, "inputs", Entry(name), "value")
            yield f"warm-up {sample.name!r}, {name!r}", sample.inputs[name], inputs[name], line


def _check_warmup_type(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    named = partial(value_name, model_config_pb2.DataType)
    for title, given, tensor, line in _warm_inputs(model):
        if given.data_type != tensor.data_type:
            value, declared = named(given.data_type), named(tensor.data_type)
            yield Fault(f"{title}: it is {value}; the input is {declared}", line)


def _check_warmup_shape(model: Model, repository: Repository) -> Iterator[Fault]:
    for title, given, tensor, line in _warm_inputs(model):
        if -1 in given.dims or not fits(given.dims, tensor.dims):
            value, declared = list(given.dims), list(tensor.dims)
            yield Fault(f"{title}: its dims are {value}; the input has {declared}", line)


def _check_warmup_data(model: Model, repository: Repository) -> Iterator[Fault]:
    for title, given, _, line in _warm_inputs(model):
        source = given.WhichOneof("input_data_type")
        if source is None:
            yield Fault(f"{title}: it has no values; expected one of {', '.join(DATA)}", line)
        elif source == DATA[-1]:
            path = model.path / "warmup" / given.input_data_file
            shown, least = path.relative_to(repository.path), _row_bytes(given)
            if not path.is_file():
                yield Fault(f"{title}: there is no file {shown}", line)
            elif path.stat().st_size < least:
                has = path.stat().st_size
                yield Fault(f"{title}: {shown} has {has} bytes; expected {least}", line)


def _row_bytes(given: Any) -> int:
    """Bytes in one row of a warm-up's input; 0 for strings, whose lengths differ.

    Every row of the batch is read from the same bytes.
    """
    from tritonclient.grpc import model_config_pb2

    name = value_name(model_config_pb2.DataType, given.data_type)
    width = int(match[0]) if (match := re.search(r"\d+$", name)) else 0
    return int(math.prod(given.dims)) * (1 if name == "TYPE_BOOL" else width // 8)


RULES = (
    Rule(
        id="batching-without-batches",
        severity=Severity.WARNING,
        title="A model with dynamic batching has a `max_batch_size`.",
        why="If it is 0, no batch is ever formed, and requests wait for others all the same.",
        mend="Set max_batch_size, or remove dynamic_batching.",
        server=Verdict.ACCEPTS,
        check=_check_batching_without_batches,
    ),
    Rule(
        id="preferred-batch-size",
        severity=Severity.WARNING,
        title="`preferred_batch_size` is for TensorRT models with several profiles.",
        why="Elsewhere it only delays requests that could have run.",
        mend="Remove it; max_queue_delay_microseconds sets how long to wait.",
        server=Verdict.ACCEPTS,
        check=_check_preferred_batch_size,
    ),
    Rule(
        id="preferred-batch-size-range",
        severity=Severity.ERROR,
        title="A preferred batch size is at most `max_batch_size`.",
        why="The model is not loaded.",
        mend="Lower it, or raise max_batch_size as far as the engine allows.",
        server=Verdict.REFUSES,
        check=_check_preferred_batch_size_range,
    ),
    Rule(
        id="queue-policy",
        severity=Severity.WARNING,
        title="A queue policy sets the size of the queue, and whether a request may set its own "
        "timeout.",
        why="By default the queue is unlimited and requests cannot set their timeout: a busy "
        "server answers all of them, too late.",
        mend="Set both; timeout_action is REJECT if left out.",
        server=Verdict.ACCEPTS,
        check=_check_queue_policy,
    ),
    Rule(
        id="priority-levels",
        severity=Severity.ERROR,
        title="Priorities are within `priority_levels`, which excludes `preserve_ordering`.",
        why="The model is not loaded.",
        mend="Set default_priority_level and policies within priority_levels; remove "
        "preserve_ordering if there are several levels.",
        server=Verdict.REFUSES,
        check=_check_priority_levels,
    ),
    Rule(
        id="cache-decoupled",
        severity=Severity.ERROR,
        title="Decoupled models, and ensembles with a decoupled step, have no response cache.",
        why="The model is not loaded.",
        mend="Remove response_cache. A step that is not decoupled may have one.",
        server=Verdict.REFUSES,
        check=_check_cache_decoupled,
    ),
    Rule(
        id="cache-sequence",
        severity=Severity.ERROR,
        title="A model with sequence batching has no response cache.",
        why="An answer depends on earlier requests of the sequence. The model is not loaded.",
        mend="Remove response_cache.",
        server=Verdict.REFUSES,
        check=_check_cache_sequence,
    ),
    Rule(
        id="cache-text",
        severity=Severity.WARNING,
        title="A model that generates text has no response cache.",
        why="The cache identifies a request by its inputs alone: a sampled text comes back "
        "unchanged, whatever seed, temperature or other parameters the next request has.",
        mend="Cache an earlier step instead, such as an encoder.",
        server=Verdict.ACCEPTS,
        check=_check_cache_text,
    ),
    Rule(
        id="warmup-batch",
        severity=Severity.ERROR,
        title="A warm-up's batch is at most `max_batch_size`.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Lower the warm-up's batch_size.",
        server=Verdict.REFUSES,
        check=_check_warmup_batch,
    ),
    Rule(
        id="warmup-inputs",
        severity=Severity.ERROR,
        title="A warm-up has every required input of the model, and at least one input.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Add each input that is not optional, by its name.",
        server=Verdict.REFUSES,
        check=_check_warmup_inputs,
    ),
    Rule(
        id="warmup-unknown",
        severity=Severity.WARNING,
        title="A warm-up has only inputs of the model.",
        why="The server passes on inputs that the model does not know.",
        mend="Spell it as the model's input, or remove it.",
        server=Verdict.ACCEPTS,
        check=_check_warmup_unknown,
    ),
    Rule(
        id="warmup-type",
        severity=Severity.ERROR,
        title="A warm-up's input has the data type of the model's input.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Use the input's data_type.",
        server=Verdict.REFUSES,
        check=_check_warmup_type,
    ),
    Rule(
        id="warmup-shape",
        severity=Severity.ERROR,
        title="A warm-up's input has sizes that the model's input allows, without the batch.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Write the input's dims, with a size in place of each -1.",
        server=Verdict.REFUSES,
        check=_check_warmup_shape,
    ),
    Rule(
        id="warmup-data",
        severity=Severity.ERROR,
        title="A warm-up's input has values; their file is in the model's folder `warmup` and "
        "holds at least a row.",
        why="The warm-up fails, and the model is not loaded.",
        mend="Write zero_data: true, or put the complete file there.",
        server=Verdict.REFUSES,
        check=_check_warmup_data,
    ),
)
