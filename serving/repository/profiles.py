"""An engine's profiles in Triton's configs: warm-ups at their sizes, and CUDA graphs of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import EngineRecord
from iblip.serving.repository.model_config import ModelConfig, data_type

BATCH = "batch"
"""The axis that Triton batches along."""

Profile = Mapping[str, Sequence[int]]
"""The least, the usual and the largest size of each dynamic axis, by its name."""


def profiles_of(record: EngineRecord) -> list[Profile]:
    """Each profile's least, usual and largest size of every dynamic axis."""
    return list(record.details.get("profiles", []))


def sizes_of(contract: Contract, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes that shapes of inputs give to a contract's dynamic axes, by the axis's name."""
    return {
        axis: size
        for spec in contract.inputs
        for axis, size in zip(spec.axes, shapes.get(spec.name, ()), strict=False)
        if isinstance(axis, str)
    }


def takes(profile: Profile, sizes: Mapping[str, int]) -> bool:
    """Whether a profile has room for these sizes; axes that it does not know have any."""
    return all(
        profile[axis][0] <= size <= profile[axis][-1]
        for axis, size in sizes.items()
        if axis in profile
    )


def cut_warm_ups(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    """The operator's warm-ups, in sizes that the engine's profiles take."""
    profiles = profiles_of(record)
    for sample in config.model_warmup if profiles else ():
        sample.batch_size = _cut(sample.batch_size, BATCH, profiles)
        for spec in contract.inputs:
            if spec.name in sample.inputs:
                dims = sample.inputs[spec.name].dims
                sizes = zip(dims, spec.axes[1:], strict=True)
                dims[:] = [_cut(size, axis, profiles) for size, axis in sizes]


def warm_up(config: ModelConfig, record: EngineRecord, contract: Contract) -> None:
    """Adds runs at each profile's usual and largest sizes."""
    for number, profile in enumerate(profiles_of(record)):
        for place, word in ((1, "usual"), (2, "most")):
            sizes = {axis: span[place] for axis, span in profile.items()}
            sample = config.model_warmup.add(
                name=f"profile {number}, {word}", batch_size=sizes.get(BATCH, 1)
            )
            for spec in contract.inputs:
                given = sample.inputs[spec.name]
                given.data_type = data_type(spec)
                given.dims.extend(_sizes(spec, sizes))
                given.zero_data = True


def record_graphs(config: ModelConfig, profiles: Sequence[Profile], contract: Contract) -> None:
    """CUDA graphs of every shape that is warmed up, in batches of 1, 2, 4 and so on to the most.

    Of these, those that a profile takes.
    """
    cuda = config.optimization.cuda
    if cuda.graph_spec:
        return  # the operator's own
    shapes = {
        tuple((name, tuple(one.dims)) for name, one in sorted(sample.inputs.items()))
        for sample in config.model_warmup
    }
    for shape in sorted(shapes):
        for batch in _batches(config.max_batch_size):
            sizes = sizes_of(contract, {name: [batch, *dims] for name, dims in shape})
            if not any(takes(profile, sizes) for profile in profiles):
                continue
            graph = cuda.graph_spec.add(batch_size=batch)
            for name, dims in shape:
                graph.input[name].dim.extend(dims)


def _cut(size: int, axis: int | str, profiles: Sequence[Profile]) -> int:
    spans = [profile[axis] for profile in profiles if isinstance(axis, str) and axis in profile]
    if not spans:
        return size
    return max(min(span[0] for span in spans), min(size, max(span[-1] for span in spans)))


def _sizes(spec: TensorSpec, sizes: Mapping[str, int]) -> Iterator[int]:
    """Of a row: its axes without the batch."""
    yield from (sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes[1:])


def _batches(most: int) -> list[int]:
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*powers, most]
