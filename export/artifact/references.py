"""`references/` of a build: what its verification saw, so that `iblip prove` can compare elsewhere.

    BUILD/references/
    ├── references.json   questions with the answers that the build gave on a CPU; names of the
    │                     cases of graphs; each graph's weights, in bytes and as matrices
    └── references.npz    the questions' images; of each case the inputs and, at some places
                          chosen at random, what transformers computed in float32

The machine that proves a build may have neither torch, transformers, `onnx` nor the checkpoint, so
that all it needs is here. The digests of both files are in the manifest. Knows numpy only.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import BuildDirectoryError
from iblip.export.system.files import sha256

FORMAT = 1
"""Of `references.json`; a reader refuses any other."""

FOLDER = "references"
FACTS, TENSORS = f"{FOLDER}/references.json", f"{FOLDER}/references.npz"

VALUES = 8192
"""Values of all of a graph's outputs that are kept of a case."""

FEWEST = 128
"""Values of each output that are kept at least, where it has so many."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some values of one output.

    Attributes:
        shape: of the whole output.
        at: where the values lie in the flattened output, int32 `[count]`.
        values: float32 `[count]`.
    """

    shape: tuple[int, ...]
    at: Array
    values: Array

    @classmethod
    def of(cls, expected: Array, real: Array | None, most: int) -> Self:
        """At most `most` values of an output, at random places.

        Args:
            expected: the whole output.
            real: a mask that broadcasts to its shape, true where a value is no padding; `None`
                where all are.
            most: how many to keep.
        """
        mask = np.ones(expected.shape, bool) if real is None else real
        places = np.flatnonzero(np.broadcast_to(mask, expected.shape))
        if len(places) > most:
            places = np.sort(np.random.default_rng(0).choice(places, most, replace=False))
        values = expected.ravel()[places].astype(np.float32)
        return cls(shape=expected.shape, at=places.astype(np.int32), values=values)


@dataclass(frozen=True, kw_only=True)
class GraphCase:
    """One input of one graph, and samples of what transformers' modules computed from it.

    Attributes:
        graph: `component/graph`.
        name: of the case, unique within the graph.
        feed: every input of the graph's contract, in its dtype.
        expected: samples of its outputs.
    """

    graph: str
    name: str
    feed: Mapping[str, Array]
    expected: Mapping[str, Sample]


@dataclass(frozen=True, kw_only=True)
class GraphWeights:
    """The weights that one run of a graph reads.

    Attributes:
        bytes: of all of them.
        products: `(rows, columns, how many)` of the matrices that activations are multiplied with.
    """

    bytes: int
    products: tuple[tuple[int, int, int], ...] = ()

    @property
    def factors(self) -> int:
        """Elements of all the matrices: a row of activations takes twice as many operations."""
        return sum(rows * columns * count for rows, columns, count in self.products)


@dataclass(frozen=True, kw_only=True)
class AnswerReference:
    """A question, and what the build answered on ONNX Runtime's CPU provider.

    Attributes:
        way: how it was asked: a key of `engines.evaluation.recording.WAYS`.
        name: of the example.
        prompt: the question.
        images: indices of its images in `References.pixels`.
        options: fields of `GenerationOptions` that differ from their defaults.
        token_ids: of the answer.
        text: of the answer.
        first: the most likely first tokens and their log-probabilities, in this order; empty unless
            asked for.
        ranking: of a ranking, each candidate's log-probability.
    """

    way: str
    name: str
    prompt: str
    images: tuple[int, ...]
    options: Mapping[str, Any]
    token_ids: tuple[int, ...]
    text: str
    first: tuple[tuple[int, float], ...] = ()
    ranking: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, as JSON gives it."""
        return cls(
            **{
                **data,
                "images": tuple(data["images"]),
                "token_ids": tuple(data["token_ids"]),
                "first": tuple((int(token), float(value)) for token, value in data["first"]),
                "ranking": tuple(data["ranking"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class References:
    """All that a build keeps of its verification.

    Attributes:
        skipped: why nothing was compared; `None` where it was.
        weights: by `component/graph`.
        cases: of graphs.
        omitted: by `component/graph`: why a graph has no case.
        pixels: the questions' images, uint8 `[images, height, width, 3]`.
        answers: to the questions.
    """

    skipped: str | None
    weights: Mapping[str, GraphWeights]
    cases: Sequence[GraphCase] = ()
    omitted: Mapping[str, str]
    pixels: Array
    answers: Sequence[AnswerReference] = ()

    def write(self, directory: Path) -> dict[str, str]:
        """Writes them into the build in `directory`; returns the sha256 of each file by its path.

        The bytes follow from the values alone.
        """
        (directory / FOLDER).mkdir()
        tensors = {"pixels": self.pixels}
        for index, case in enumerate(self.cases):
            tensors |= {f"{index}/feed/{key}": _plain(array) for key, array in case.feed.items()}
            for key, sample in case.expected.items():
                tensors[f"{index}/at/{key}"] = sample.at
                tensors[f"{index}/values/{key}"] = sample.values
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **tensors)
        (directory / TENSORS).write_bytes(packed.getvalue())
        (directory / FACTS).write_text(json.dumps(self._facts(), indent=1) + "\n", encoding="utf-8")
        return {path: sha256(directory / path) for path in (FACTS, TENSORS)}

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "skipped": self.skipped,
            "weights": {title: asdict(weights) for title, weights in self.weights.items()},
            "cases": [
                {
                    "graph": case.graph,
                    "name": case.name,
                    "inputs": list(case.feed),
                    "outputs": {key: list(s.shape) for key, s in case.expected.items()},
                }
                for case in self.cases
            ],
            "omitted": dict(self.omitted),
            "answers": [asdict(answer) for answer in self.answers],
        }

    @classmethod
    def read(cls, directory: Path, manifest: Manifest) -> Self | None:
        """The references of the build in `directory`; `None` if it was built without any.

        Raises:
            BuildDirectoryError: a file is missing, is not the one that was built, or is of another
                format.
        """
        if not manifest.references:
            return None
        check_references(directory, manifest)
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise BuildDirectoryError(
                f"{directory / FACTS} has format {facts['format']!r}; this version reads {FORMAT}."
                " Build it again."
            )
        contracts = {
            f"{component}/{name}": graph.contract
            for component, record in manifest.components.items()
            for name, graph in record.graphs.items()
        }
        with np.load(directory / TENSORS) as tensors:
            return cls(
                skipped=facts["skipped"],
                weights={
                    title: GraphWeights(
                        bytes=entry["bytes"], products=tuple(map(tuple, entry["products"]))
                    )
                    for title, entry in facts["weights"].items()
                },
                cases=[
                    _case(index, entry, tensors, contracts[entry["graph"]])
                    for index, entry in enumerate(facts["cases"])
                ],
                omitted=facts["omitted"],
                pixels=tensors["pixels"],
                answers=[AnswerReference.from_json(entry) for entry in facts["answers"]],
            )


def check_references(directory: Path, manifest: Manifest) -> None:
    """Compares the references of a build with the digests in its manifest.

    Raises:
        BuildDirectoryError: naming each file that is missing or not the one that was built.
    """
    faults = []
    for path, digest in manifest.references.items():
        file = directory / path
        if not file.is_file():
            faults.append(f"{path} is missing")
        elif (actual := sha256(file)) != digest:
            faults.append(f"{path} has digest {actual}, expected {digest}")
    if faults:
        raise BuildDirectoryError(
            f"the references of {directory} are not those that its manifest names:\n  "
            + "\n  ".join(faults)
            + "\nCopy the whole build again, or rebuild it."
        )


def _case(index: int, entry: Mapping[str, Any], tensors: Any, contract: Contract) -> GraphCase:
    return GraphCase(
        graph=entry["graph"],
        name=entry["name"],
        feed={
            key: _of_dtype(tensors[f"{index}/feed/{key}"], contract.input(key).numpy_dtype)
            for key in entry["inputs"]
        },
        expected={
            key: Sample(
                shape=tuple(shape),
                at=tensors[f"{index}/at/{key}"],
                values=tensors[f"{index}/values/{key}"],
            )
            for key, shape in entry["outputs"].items()
        },
    )


def _plain(array: Array) -> Array:
    """numpy's own dtypes as they are, bfloat16 as its bits: `.npy` does not know it."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _of_dtype(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.view(dtype) if dtype.name == "bfloat16" else array
