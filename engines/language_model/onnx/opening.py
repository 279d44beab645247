"""Opens a build's language model on ONNX Runtime: its graphs, on a CPU or a GPU, and its slots."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from iblip.engines.kinds import OPENVINO
from iblip.engines.language_model.onnx.decoder_only import DecoderOnly, MakeCaches
from iblip.engines.language_model.onnx.encoder_decoder import EncoderDecoder
from iblip.engines.language_model.onnx.graph import ON_CPU, ON_GPU, Graph, OnnxRuntimeGraph
from iblip.engines.language_model.onnx.key_value_caches import (
    Caches,
    DeviceCaches,
    HostCaches,
    Shape,
)
from iblip.engines.language_model.onnx.slots import (
    BatchModel,
)
from iblip.engines.onnxruntime.providers import CPU, Placement
from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import SLOTS, Manifest
from iblip.export.errors import BuildDirectoryError, EngineError

logger = logging.getLogger(__name__)

MODELS: Mapping[bool, Callable[..., BatchModel]] = {False: DecoderOnly, True: EncoderDecoder}
"""`is_encoder_decoder` to the kind of model."""


def open_model(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
    slots: int = SLOTS,
    positions: int | None = None,
    prefix_cache: bool = True,
) -> BatchModel:
    """The language model of a build, with its graphs loaded.

    Args:
        directory: of the build.
        manifest: of the same build.
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.
        device: the GPU's number, from 0, if the engine runs on one; its slots lie there too.
        slots: how many sequences it holds.
        positions: how many positions a sequence may have; `None` is the model's own length.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before. None
            does where int8 activations share a scale, which depends on all that is read at once.

    Raises:
        BuildDirectoryError: the build lacks one of its graphs.
        EngineError: a graph cannot be loaded.
    """
    record = manifest.components.get("language_model")
    kind = CPU.kind if record is None else record.engine.kind
    placement = None if kind == OPENVINO else Placement(kind=kind, device=device)
    on_gpu = placement is not None and placement.memory != "cpu"
    facts = manifest.language_model
    shares_scales = record is not None and record.quantisation.get("activations") == "dynamic"
    graphs = open_graphs(directory, manifest, placement, threads=threads)
    return MODELS[facts.is_encoder_decoder](
        graphs,
        facts,
        slots=slots,
        positions=positions,
        make_caches=_make_on_gpu(device) if on_gpu else HostCaches,
        shapes=ON_GPU if on_gpu else ON_CPU,
        prefix_cache=prefix_cache and not shares_scales,
    )


def open_graphs(
    directory: Path,
    manifest: Manifest,
    placement: Placement | None,
    *,
    threads: int | None = None,
) -> dict[str, Graph]:
    """The graphs of a build's language model, by name.

    Args:
        directory: of the build.
        manifest: of the same build.
        placement: ONNX Runtime's execution provider, its device and its options; `None` for
            OpenVINO.
        threads: for one operator, on a CPU; `None` takes what suits the graph and the machine.

    Raises:
        BuildDirectoryError: the build lacks one of them.
        EngineError: a graph cannot be loaded.
    """
    record = manifest.components.get("language_model")
    encoder = ["embed_tokens", "encoder"] if manifest.language_model.is_encoder_decoder else []
    names = ["batched_decoder", *encoder]
    missing = [name for name in names if record is None or name not in record.graphs]
    if record is None or missing:
        message = f"the build in {directory} has no language_model graph {', '.join(missing)}"
        raise BuildDirectoryError(f"{message}. Build it again.")
    contracts = {name: record.graphs[name].contract for name in names}
    paths = {name: directory / record.engine.files[name] for name in names}

    def open_graph(name: str) -> Graph:
        if placement is None:
            from iblip.engines.openvino.graph import OpenVinoGraph

            return OpenVinoGraph(
                paths[name],
                contracts[name],
                threads=threads,
                block_size=record.quantisation.get("block_size"),
            )
        if name == "batched_decoder":
            return _open_decoder(paths[name], contracts[name], placement, threads)
        return OnnxRuntimeGraph(paths[name], contracts[name], threads=threads, placement=placement)

    graphs = {"batched_decoder": open_graph("batched_decoder")}
    if encoder:
        # It looks up a few rows: a second thread would only wait, and a GPU would hold the table
        # a second time, which its decoder has.
        graphs["embed_tokens"] = OnnxRuntimeGraph(
            paths["embed_tokens"], contracts["embed_tokens"], threads=1
        )
        graphs["encoder"] = open_graph("encoder")
    return graphs


def _open_decoder(
    path: Path, contract: Contract, placement: Placement, threads: int | None
) -> Graph:
    """Opens the decoder; on a GPU as one that replays its steps, if all of it runs there."""
    # Its steps follow one another at once; the others run once an answer or on one thread.
    if placement.memory == "cpu":
        return OnnxRuntimeGraph(path, contract, threads=threads, spin=True, placement=placement)
    try:
        replaying = replace(placement, captures=True)
        return OnnxRuntimeGraph(path, contract, threads=threads, spin=True, placement=replaying)
    except EngineError as error:
        if "graph capture" not in str(error):
            raise
        logger.warning("%s is run without CUDA graphs: not all of it is on the GPU", path)
        return OnnxRuntimeGraph(path, contract, threads=threads, spin=True, placement=placement)


def _make_on_gpu(device: int) -> MakeCaches:
    from iblip.engines.cuda.device import CudaDevice

    def make(specs: Iterable[TensorSpec], shape: Shape) -> Caches:
        return DeviceCaches(specs, shape, CudaDevice(device), device)

    return make
