"""The stages of a proof: a table, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from iblip.serving.proving.subject import Run


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of `STAGES`.

    Attributes:
        title: for people.
        module: of this package; imported only in the stage's own process.
        function: of the module: a `Run`.
        required: whether a proof that `--engine auto` relies on must have it.
    """

    title: str
    module: str
    function: str
    required: bool = True

    def load(self) -> Run:
        """Imports and returns the function that runs it."""
        module = import_module(f"iblip.serving.proving.{self.module}")
        run: Run = getattr(module, self.function)
        return run


STAGES: Mapping[str, Stage] = {
    "smoke": Stage(
        title="The machine, and a GPU's memory", module="machine", function="check_machine"
    ),
    "placement": Stage(
        title="Where ONNX Runtime puts each node",
        module="placement",
        function="check_placement_of_nodes",
    ),
    "graphs": Stage(
        title="Every graph, against transformers", module="graphs", function="compare_graphs"
    ),
    "text": Stage(
        title="Greedy answers and beams, against the CPU's",
        module="answers",
        function="compare_texts",
    ),
    "ranking": Stage(
        title="Rankings, against the CPU's", module="answers", function="compare_rankings"
    ),
    "images": Stage(
        title="Several images, against the CPU's", module="answers", function="compare_images"
    ),
    "invariance": Stage(
        title="Alone and in a crowd", module="answers", function="compare_crowds", required=False
    ),
    "kernels": Stage(
        title="Kernels of attention", module="kernels", function="find_kernels", required=False
    ),
    "memory": Stage(title="Memory after many requests", module="memory", function="measure_memory"),
    "speed": Stage(title="Speed", module="speed", function="measure_speed", required=False),
}
"""By name, as `--stage` takes it."""
