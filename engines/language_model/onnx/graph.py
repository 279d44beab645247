"""One graph of a language model, what runs it, and the shapes of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iblip.engines.language_model.onnx.slots import (
    Array,
)
from iblip.engines.onnxruntime.binding import Binding, DeviceArray
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.engines.onnxruntime.session import open_session
from iblip.export.artifact.contract import Contract
from iblip.export.errors import EngineError
from iblip.export.graph.onnxruntime_values import run

SMALLEST_PIECE = 64
"""Positions of the shortest padded piece of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The shapes of a model's runs.

    Attributes:
        piece: positions of prompts that are read at once. The sums in them do not depend on the
            other requests unless shapes repeat: another order can give another result.
        repeat: whether shapes repeat: pieces of prompts are padded to a power of two, short prompts
            are read together, and lengths are bounded by the capacity.
    """

    piece: int = 64
    repeat: bool = False

    def pad(self, positions: int) -> int:
        """The length of a padded piece, for at most `piece` positions."""
        return min(max(SMALLEST_PIECE, 1 << (positions - 1).bit_length()), self.piece)

    def padded(self, positions: int) -> int:
        """How many positions the runs have that read so many."""
        if not self.repeat:
            return positions
        whole, rest = divmod(positions, self.piece)
        return whole * self.piece + (self.pad(rest) if rest else 0)

    @property
    def prompts_at_once(self) -> int:
        """How many prompts may be read at once: the shortest ones that fit into a piece."""
        return max(1, self.piece // SMALLEST_PIECE) if self.repeat else 1


ON_CPU, ON_GPU = Shapes(), Shapes(piece=512, repeat=True)


class BoundGraph(Protocol):
    """A graph that runs on memory that stays in place: see `Binding`."""

    def input(self, name: str, array: Array | DeviceArray) -> None:
        """As `Binding.input`."""
        ...

    def output(self, name: str, array: Array | DeviceArray) -> None:
        """As `Binding.output`."""
        ...

    def run(self) -> None:
        """As `Binding.run`."""
        ...


class Graph(Protocol):
    """One ONNX graph, opened.

    Attributes:
        contract: its inputs and outputs.
    """

    contract: Contract

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph; returns every output by name. Raises `EngineError` if that fails."""
        ...

    def binding(self, replayed: int = -1) -> BoundGraph:
        """A new binding, which runs the graph on memory that stays in place.

        Args:
            replayed: number of the CUDA graph that its runs are captured as, if the graph's runs
                can be; -1 for none.
        """
        ...


class OnnxRuntimeGraph:
    """A `Graph` on ONNX Runtime.

    Args:
        path: of the `.onnx` file.
        contract: its inputs and outputs.
        threads: for one operator; `None` takes what suits the graph and the machine.
        spin: whether idle threads wait busily during a run.
        placement: the execution provider, its device and its options.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        *,
        threads: int | None = None,
        spin: bool = False,
        placement: Placement = CPU,
    ) -> None:
        self._path = path
        self._session = open_session(
            path, contract, threads=threads, spin=spin, placement=placement
        )
        self._replays = placement.captures
        self._outputs = [spec.name for spec in contract.outputs]
        self.contract = contract

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """As `Graph.__call__`."""
        try:
            return run(self._session, self._outputs, arrays)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"ONNX Runtime failed in {self._path} ({error})") from error

    def binding(self, replayed: int = -1) -> Binding:
        """As `Graph.binding`."""
        number = replayed if self._replays else None
        return Binding(self._session, str(self._path), replayed=number)
