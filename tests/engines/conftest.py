"""What the tests of engines share: small graphs and builds, a small model's facts, a plan cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from iblip.engines.cache.key import PlanInputs
from iblip.engines.cache.store import EngineCache
from iblip.engines.cuda.device import Array, BoxCopy
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import (
    ComponentRecord,
    EngineRecord,
    GraphRecord,
    LanguageModelFacts,
    Manifest,
    ServingLimits,
)
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import language_model_facts, preprocessing, write_tokenizers
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.errors import EngineError
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.trace_cache import TraceCache
from iblip.export.precision import COMPONENTS, PrecisionPolicy
from iblip.export.progress import Silent
from tests.fixtures.sharing import MakeOnce

SIDE, PATCH, WIDTH = 24, 12, 32
PATCHES = (SIDE // PATCH) ** 2
TEXT_DTYPES = {"float32": "float", "float16": "float16"}

# A vision encoder in small: preprocessing, patches, one attention, and a float32 island in it.
VISION = """
<ir_version: 10, opset_import: ["" : 20]>
vision (uint8[batch, {side}, {side}, 3] pixels) => ({dtype}[batch, {patches}, {width}] image_embeds)
<float[3] mean, float[3] std, {dtype}[{width}, 3, {patch}, {patch}] kernel,
 {dtype}[{width}, {width}] wq, {dtype}[{width}, {width}] wk, {dtype}[{width}, {width}] wv>
{{
    floats = Cast <to = 1> (pixels)
    scale = Constant <value_float = 255.0> ()
    unit = Div (floats, scale)
    centred = Sub (unit, mean)
    normal = Div (centred, std)
    channels = Transpose <perm = [0, 3, 1, 2]> (normal)
    image = Cast <to = {code}> (channels)
    patches = Conv <strides = [{patch}, {patch}]> (image, kernel)
    rows_shape = Constant <value_ints = [0, {width}, -1]> ()
    rows = Reshape (patches, rows_shape)
    x = Transpose <perm = [0, 2, 1]> (rows)
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, kt)
    wide = Cast <to = 1> (scores)
    shares = Softmax <axis = -1> (wide)
    narrow = Cast <to = {code}> (shares)
    mixed = MatMul (narrow, v)
    image_embeds = Add (x, mixed)
}}
"""


def write_vision_graph(directory: Path, dtype: str = "float32") -> OnnxGraph:
    """A vision-like graph with its weights in `weights.bin` beside it."""
    text = VISION.format(
        side=SIDE,
        patch=PATCH,
        patches=PATCHES,
        width=WIDTH,
        dtype=TEXT_DTYPES[dtype],
        code={"float32": 1, "float16": 10}[dtype],
    )
    model = parser.parse_model(text)
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / 16).astype(dtype)

    weights = {
        "mean": np.array([0.48, 0.46, 0.41], np.float32),
        "std": np.array([0.27, 0.26, 0.28], np.float32),
        "kernel": normal(WIDTH, 3, PATCH, PATCH),
        **{name: normal(WIDTH, WIDTH) for name in ("wq", "wk", "wv")},
    }
    del model.graph.initializer[:]
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path = directory / "vision.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return OnnxGraph(
        component="vision_encoder",
        name="model",
        path=path,
        weights=(directory / "weights.bin",),
        precision={"float32": "fp32", "float16": "fp16"}[dtype],
        digest="0" * 64,
        contract=Contract(
            inputs=(TensorSpec(name="pixels", dtype="uint8", axes=("batch", SIDE, SIDE, 3)),),
            outputs=(TensorSpec(name="image_embeds", dtype=dtype, axes=("batch", PATCHES, WIDTH)),),
        ),
    )


@pytest.fixture
def vision_graph(tmp_path: Path) -> Callable[[str], OnnxGraph]:
    """`vision_graph("float16")`: a vision-like graph in a directory of its own."""

    def write(dtype: str = "float32") -> OnnxGraph:
        directory = tmp_path / dtype
        directory.mkdir()
        return write_vision_graph(directory, dtype)

    return write


@pytest.fixture
def proven() -> Callable[[OnnxGraph], VerifiedGraph]:
    return lambda graph: VerifiedGraph(graph=graph, figures={"max_abs": 0.0})


@pytest.fixture
def facts() -> Callable[..., LanguageModelFacts]:
    """`facts(vocab_size=…)`: of a small LLaMA, with what the test changes."""

    def make(**changes: Any) -> LanguageModelFacts:
        values: dict[str, Any] = {
            "architecture": "llama",
            "is_encoder_decoder": False,
            "hidden_size": 8,
            "num_layers": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 260,
            "num_query_tokens": 4,
            "max_length": 64,
            "bos_token_id": 257,
            "pad_token_id": None,
            "decoder_start_token_id": None,
            "eos_token_ids": (256,),
            "image_token_id": None,
            "default_max_new_tokens": 20,
        }
        return LanguageModelFacts(**{**values, **changes})

    return make


def _build(
    source: Path, directory: Path, precision: str, parts: tuple[str, ...], traces: TraceCache
) -> None:
    """A build of a checkpoint on ONNX Runtime, as `iblip build --no-verify` makes it."""
    checkpoint, policy = checkpoint_from_directory(source), PrecisionPolicy.parse(precision)
    (directory / "graphs").mkdir(parents=True)
    graphs = [
        onnx_from_component(component, checkpoint, directory / "graphs", Silent(), traces=traces)
        for component in components_from_checkpoint(checkpoint, policy)
        if component.component in parts
    ]
    components = {}
    for name in parts:
        records = {
            graph.name: GraphRecord(
                path=str(graph.path.relative_to(directory)),
                weights=tuple(str(path.relative_to(directory)) for path in graph.weights),
                digest=graph.digest,
                contract=graph.contract,
            )
            for graph in graphs
            if graph.component == name
        }
        files = {key: record.path for key, record in records.items()}
        components[name] = ComponentRecord(
            precision=policy.word(name),
            graphs=records,
            engine=EngineRecord(kind="onnxruntime", files=files),
        )
    Manifest(
        name="random",
        family=checkpoint.family.name,
        source={},
        precision=policy.to_json(),
        components=components,
        preprocessing=preprocessing(checkpoint),
        text=write_tokenizers(checkpoint, directory),
        language_model=language_model_facts(checkpoint),
        limits=ServingLimits(
            slots=8,
            max_length=language_model_facts(checkpoint).max_length,
            queue=256,
            images=1 if checkpoint.family.images == "one" else 4,
        ),
        verification={"skipped": "a test"},
        tools={},
        created="",
    ).write(directory)


@pytest.fixture(scope="session")
def random_build(
    random_checkpoint: Callable[[str], Path],
    traces: TraceCache,
    make_once: MakeOnce,
) -> Callable[..., Path]:
    """`random_build("t5", "fp16", "qformer")`: of a random checkpoint, all of it or these parts.

    Made once, so a test must leave it as it is.
    """

    def make(kind: str, precision: str = "fp32", *parts: str) -> Path:
        def write(directory: Path) -> None:
            _build(random_checkpoint(kind), directory, precision, parts or COMPONENTS, traces)

        return make_once("-".join(["random-builds/build", kind, precision, *parts]), write)

    return make


ALIGNMENT, JUNK = 256, 0xA5
Work = Callable[[], None]


@dataclass
class HostDevice:
    """A `Device` (see `engines.cuda.device`) whose memory is this process's.

    It stands where no GPU is: it does nothing before it is waited for, looks at memory when work
    is done and not when it is queued, and knows what it gave away. It cannot show what CUDA
    does.
    """

    name: str = "the host"
    fails: str = ""  # the call that fails
    memory: dict[int, Array] = field(default_factory=dict)  # by address, of both kinds
    streams: dict[int, list[Work]] = field(default_factory=dict)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    capturing: list[Work] | None = None
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def use(self) -> None:
        self._called("use")

    def allocate(self, size: int) -> int:
        self._called("allocate")
        assert size > 0
        block = np.full(size + ALIGNMENT, JUNK, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        address = block.ctypes.data + start
        self.memory[address] = block[start : start + size]
        return address

    def free(self, address: int) -> None:
        self._called("free")
        del self.memory[address]

    def allocate_pinned(self, size: int) -> Array:
        self._called("allocate_pinned")
        array = np.full(size, JUNK, np.uint8)
        self.memory[array.ctypes.data] = array
        return array

    def free_pinned(self, array: Array) -> None:
        self._called("free_pinned")
        del self.memory[array.ctypes.data]

    def open_stream(self) -> int:
        self._called("open_stream")
        stream = next(self.numbers)
        self.streams[stream] = []
        return stream

    def close_stream(self, stream: int) -> None:
        self._called("close_stream")
        assert not self.streams.pop(stream), "work is left on the stream"

    def upload(self, address: int, array: Array, stream: int) -> None:
        self._called("upload")
        self.bytes_at(array.ctypes.data, array.nbytes)  # pinned, and still ours
        self.put(stream, lambda: self._copy(address, array.ctypes.data, array.nbytes))

    def download(self, array: Array, address: int, stream: int) -> None:
        self._called("download")
        self.put(stream, lambda: self._copy(array.ctypes.data, address, array.nbytes))

    def copy_boxes(
        self,
        boxes: Sequence[BoxCopy],
        *,
        pitch: int,
        rows: int,
        layer: int,
        layers: int,
        stream: int,
        source_pitch: int | None = None,
        source_layer: int | None = None,
    ) -> None:
        self._called("copy_boxes")
        pitches, steps = (pitch, source_pitch or pitch), (layer, source_layer or layer)
        assert not any(step % pitch for step, pitch in zip(steps, pitches, strict=True))

        def work() -> None:
            places, sources = (
                [i * step + j * pitch for i in range(layers) for j in range(rows)]
                for step, pitch in zip(steps, pitches, strict=True)
            )
            # All is read before anything is written: the order of boxes is nobody's to rely on.
            read = [
                [self.bytes_at(box.source + at, box.width).copy() for at in sources]
                for box in boxes
            ]
            for box, pieces in zip(boxes, read, strict=True):
                for at, piece in zip(places, pieces, strict=True):
                    self.bytes_at(box.target + at, box.width)[:] = piece

        self.put(stream, work)

    def upload_rows(self, address: int, array: Array, *, pitch: int, stream: int) -> None:
        self._called("upload_rows")
        rows = array.reshape(len(array), -1).view(np.uint8)

        def work() -> None:
            for index, row in enumerate(rows):
                self.bytes_at(address + index * pitch, row.size)[:] = row

        self.put(stream, work)

    def clear(self, address: int, size: int, stream: int) -> None:
        self._called("clear")
        self.put(stream, lambda: self.bytes_at(address, size).fill(0))

    def synchronize(self, stream: int) -> None:
        self._called("synchronize")
        assert self.capturing is None, "nothing can be waited for while work is captured"
        while self.streams[stream]:
            self.streams[stream].pop(0)()

    def capture(self, stream: int, work: Work) -> int:
        self._called("capture")
        self.capturing = []
        try:
            work()
            graph = next(self.numbers)
            self.graphs[graph] = self.capturing
        finally:
            self.capturing = None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch")
        self.streams[stream] += self.graphs[graph]

    def forget(self, graph: int) -> None:
        self._called("forget")
        del self.graphs[graph]

    def put(self, stream: int, work: Work) -> None:
        """Queues work, or captures it."""
        (self.streams[stream] if self.capturing is None else self.capturing).append(work)

    def bytes_at(self, address: int, size: int) -> Array:
        """Memory that was given away, and lies within one piece."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + block.size:
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:x} are nobody's")

    def _copy(self, target: int, source: int, size: int) -> None:
        if size:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise EngineError(f"{call} fails")


@pytest.fixture
def host_device() -> HostDevice:
    """Where no GPU is."""
    return HostDevice()


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def inputs_of(number: int) -> PlanInputs:
    """The inputs of a plan, equal to those of no other number."""
    return PlanInputs(
        graph=f"{number:064x}",
        precision="fp16",
        library="tensorrt-rtx",
        version="1.7.1",
        targets=("sm89",),
        device=None,
        settings={"flags": [], "profiles": []},
    )


@pytest.fixture
def keep(cache: EngineCache, tmp_path: Path) -> Callable[..., str]:
    """`keep(3, b"…")`: keeps a plan of that content as a build does; returns its key."""

    def make(number: int, content: bytes = b"a plan") -> str:
        inputs, plan = inputs_of(number), tmp_path / f"built-{number}.plan"
        plan.write_bytes(content)
        with cache.claim(inputs.key, waiting=None) as free:
            assert free
            cache.keep(
                inputs,
                plan,
                graph="vision_encoder/model",
                details={"bytes": len(content), "seconds": 1.5},
                build="/builds/demo",
            )
        plan.unlink()
        return inputs.key

    return make
