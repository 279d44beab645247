"""What a build takes of one GPU's memory, and what fits.

Arithmetic alone, of numbers that are known before anything is traced or loaded: it asks no card.
Weights and caches are exact. `work` (what a run keeps beside them) follows from the widest layer at
the largest sizes that are served; `CONTEXT` and `VLLM_WORK` are round figures, and no GPU has
confirmed them yet (docs/evidence.md). Why builds decide by it: docs/decisions/0031.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError
from iblip.export.messages import size_text

MEMORY = "memory"
"""The key of a component's `ComponentMemory` in `EngineRecord.details`."""

CONTEXT = 512 << 20
"""Bytes that a process takes of a GPU before it has loaded a model: CUDA's context and kernels, and
the workspaces of cuBLAS and cuDNN."""

RESERVE = 0.03
"""Share of a card that nothing is planned for: what the driver keeps, and pieces too small for
use."""

VLLM_WORK = 2 << 30
"""Bytes that vLLM takes beside weights and caches: the activations of its largest batch, and its
CUDA graphs."""

PREFILL = 512
"""Positions of a prompt that are read at once; an upper bound."""

SPARE = 1.1
"""By how much more than tensors that are alive at once ONNX Runtime's arena holds: over stubs of
CUDA it took 0.91 to 1.06 times as much as `Layer.work` says without."""

FLOAT32 = 4
"""Bytes of an element in the islands of float32 (`export.precision`)."""

USUAL_CARD = 24 * 10**9
"""Bytes of the card that defaults are chosen for where none is named and this machine has none."""

LEAST_POSITIONS = 512
"""Slots are given up before sequences become shorter than this, unless the caller says so."""

STEP = 64
"""Positions by which sequences are shortened."""

UNITS: Mapping[str, int] = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}

CACHES = ("past_key_values.", "cross_key_values.")
"""How the decoder's inputs begin that live in slots."""


def bytes_from_text(text: str, flag: str = "--gpu-memory") -> int:
    """Bytes of a size such as `24GB` or `23.5GiB`.

    Raises:
        OptionError: it has no unit of `UNITS`, or is not above 0.
    """
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})\s*", text)
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise OptionError(
            f"{flag} is {text!r}; expected a size above 0 with one of the units"
            f" {', '.join(UNITS)}, such as 24GB"
        )
    return size


def bytes_a_position(decoder: Contract) -> int:
    """Bytes of one position in one slot, of every layer's keys and values."""
    total = 0
    for spec in decoder.inputs:
        if spec.name.startswith(CACHES):
            sizes = [axis for axis in spec.axes if isinstance(axis, int)]  # heads, head_dim
            total += math.prod(sizes) * spec.itemsize
    return total


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The widest layer of a transformer.

    Attributes:
        hidden: elements of a position.
        inner: elements of a position within the feed-forward; of all gates together.
        heads: of attention.
        itemsize: bytes of an element.
    """

    hidden: int
    inner: int
    heads: int
    itemsize: int

    def work(self, rows: int, queries: int, keys: int) -> int:
        """Bytes that one layer keeps while it runs: the stream in its own dtype and in float32, and
        the larger of attention and feed-forward.

        Args:
            rows: sequences.
            queries: positions of each.
            keys: positions that each of them sees, where scores are kept; 0 if attention keeps
                none.
        """
        stream = self.hidden * (3 * self.itemsize + 2 * FLOAT32)
        attention = 4 * self.hidden * self.itemsize
        scores = self.heads * keys * (2 * self.itemsize + 3 * FLOAT32)
        feed_forward = 3 * self.inner * self.itemsize
        position = stream + max(attention + scores, feed_forward)
        return int(SPARE * rows * queries * position)


@dataclass(frozen=True, kw_only=True)
class ComponentMemory:
    """What one instance of a component takes of a GPU.

    Attributes:
        component: its name.
        weights: bytes.
        work: bytes beside weights and caches, at the largest sizes.
        process: bytes of its process, `CONTEXT`; 0 where it shares another's.
    """

    component: str
    weights: int
    work: int
    process: int = CONTEXT

    @property
    def total(self) -> int:
        """Bytes, caches left out."""
        return self.weights + self.work + self.process

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What all that runs on one GPU takes of it.

    Attributes:
        components: those on the GPU.
        position: bytes of keys and values of a position of one slot; 0 if the language model is not
            on the GPU.
        slots: of the language model.
        positions: of a slot.
        card: bytes of the GPU; `None` if it is not known.
        pooled: whether sequences take keys and values from one pool as they grow, as in vLLM, and
            not from slots that are taken whole: then one sequence has to fit.
    """

    components: tuple[ComponentMemory, ...]
    position: int = 0
    slots: int = 0
    positions: int = 0
    card: int | None = None
    pooled: bool = False

    @property
    def fixed(self) -> int:
        """Bytes of everything but keys and values."""
        return sum(row.total for row in self.components)

    @property
    def reserve(self) -> int:
        """Bytes that nothing is planned for."""
        return int(RESERVE * (self.card or 0))

    @property
    def room(self) -> int:
        """Bytes that are left for keys and values; below 0 where not even the rest fits."""
        return (self.card or 0) - self.reserve - self.fixed

    @property
    def full(self) -> int:
        """Bytes of keys and values when every slot is full."""
        return self.slots * self.positions * self.position

    @property
    def caches(self) -> int:
        """Bytes of keys and values that are taken at the start."""
        if not self.pooled:
            return self.full
        one = self.positions * self.position
        return min(self.full, max(one, 0 if self.card is None else self.room))

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.fixed + self.caches + self.reserve

    @property
    def fits(self) -> bool:
        """Whether the card has as much; true of one that is not known."""
        return self.card is None or self.total <= self.card

    def most_slots(self) -> int:
        """Slots of `positions` that fit; 0 if none does."""
        return max(0, self.room // (self.positions * self.position))

    def most_positions(self, slots: int | None = None) -> int:
        """Positions of each of `slots` (its own if `None`) that fit; 0 if none does."""
        return max(0, self.room // ((slots or self.slots) * self.position))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, in bytes."""
        return {
            "card": self.card,
            "components": [row.to_json() for row in self.components],
            "bytes_a_position": self.position,
            "slots": self.slots,
            "positions": self.positions,
            "key_values": self.caches,
            "pooled": self.pooled,
            "reserve": self.reserve,
            "total": self.total,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        card = "of an unknown card" if self.card is None else f"of a card of {size_text(self.card)}"
        yield f"GPU memory {card}: {size_text(self.total)}{self._verdict()}"
        yield f"  {'':<16}{'weights':>12}{'work':>12}{'process':>12}{'in all':>12}"
        for row in self.components:
            sizes = (row.weights, row.work, row.process, row.total)
            yield f"  {row.component:<16}" + "".join(f"{size_text(size):>12}" for size in sizes)
        if self.position:
            caches = f"{size_text(self.caches):>48}  {self._describe_caches()}"
            yield f"  {'keys and values':<16}{caches}"
        if self.card is not None:
            yield f"  {'reserve':<16}{size_text(self.reserve):>48}  {RESERVE:.0%} of the card"

    def _describe_caches(self) -> str:
        each = f"{size_text(self.position)} a position"
        if self.pooled:
            return f"one pool for {self.slots} sequences of up to {self.positions:,}, {each}"
        return f"{self.slots} slots of {self.positions:,} positions, {each}"

    def _verdict(self) -> str:
        if self.card is None:
            return ""
        return ", which fits" if self.fits else ", WHICH DOES NOT FIT"

    def advice(self) -> str:
        """What to change so that it fits, with numbers, as sentences."""
        engine = " --llm-engine onnxruntime-cuda" if self.pooled else ""
        smaller = (
            f"--precision language_model=int4{engine} makes its weights a quarter of those in 16"
            " bits; a larger card is named with --gpu-memory."
        )
        if not self.position or self.most_positions(1) < 1:
            return f"Everything but keys and values takes {size_text(self.fixed)}. {smaller}"
        pairs = [(self.most_slots(), self.positions), (self.slots, self.most_positions())]
        flags = [
            f"--slots {count} --max-length {length}" for count, length in pairs if count * length
        ]
        return f"{' or '.join(flags)} fits. {smaller}"


def choose_limits(
    plan: Callable[[int, int], MemoryPlan],
    *,
    slots: int | None,
    positions: int | None,
    default_slots: int,
    longest: int,
    least: int = LEAST_POSITIONS,
) -> MemoryPlan | None:
    """The plan of the most slots, and then the longest sequences, that fit.

    What the caller has said stays. Otherwise sequences are shortened first, to `least`, and then
    slots are given up: a beam search wants a slot for each beam at any length.

    Args:
        plan: makes the plan of so many slots of so many positions.
        slots, positions: what the caller asks for; `None` leaves it open.
        default_slots: the most slots that are chosen.
        longest: the model's own positions.
        least: the fewest positions that are chosen.

    Returns:
        `None` if nothing fits.
    """
    shorter = range((longest - 1) // STEP * STEP, min(least, longest) - 1, -STEP)
    lengths = [longest, *shorter] if positions is None else [positions]
    counts = range(default_slots, 0, -1) if slots is None else [slots]
    plans = (plan(count, length) for count in counts for length in lengths)
    return next((each for each in plans if each.fits), None)


def plan_of_build(
    manifest: Manifest,
    *,
    card: int | None = None,
    slots: int | None = None,
    positions: int | None = None,
) -> MemoryPlan | None:
    """The plan of a build, as it was recorded; `None` if nothing of it runs on a GPU.

    Args:
        manifest: of the build.
        card: bytes of the GPU; `None` if it is not known.
        slots, positions: of the language model, if those differ from the build's limits.
    """
    rows = {
        name: ComponentMemory.from_json(record.engine.details[MEMORY])
        for name, record in manifest.components.items()
        if MEMORY in record.engine.details
    }
    if not rows:
        return None
    limits, record = manifest.limits, manifest.components.get("language_model")
    decoder = record and record.graphs.get("batched_decoder")
    caches = decoder is not None and "language_model" in rows
    settings = record.engine.details if record else {}
    shares = math.prod(settings.get(name, 1) for name in ("tensor_parallel", "pipeline_parallel"))
    return MemoryPlan(
        components=tuple(rows.values()),
        position=bytes_a_position(decoder.contract) // shares if decoder and caches else 0,
        slots=slots or limits.slots,
        positions=positions or limits.max_length,
        card=card,
        pooled=record is not None and record.engine.kind == "vllm",
    )
