import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.errors import BuildDirectoryError, VerificationError
from iblip.export.exporter import graphs_from_checkpoint
from iblip.export.graph.digest import check_digests, digest_from_onnx
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent
from iblip.export.quantisation.options import QuantisationOptions, quantisations
from iblip.export.verification.graphs import verify_graphs
from tests.cases import exhaustive

KINDS = ("vicuna", "flant5", "opt")
ALL = [(kind, precision) for kind in KINDS for precision in ("fp32", "fp16")]


@pytest.fixture(scope="module")
def exported(tiny, checkpoints, traces, tmp_path_factory):
    """Graphs of a tiny checkpoint, by kind and precision, made once."""
    made, pictures = {}, checkpoints / "heldout"

    def export(kind, precision):
        if (kind, precision) not in made:
            checkpoint = checkpoint_from_directory(tiny(kind))
            directory = tmp_path_factory.mktemp(f"{kind}-{precision}")
            policy = PrecisionPolicy.parse(precision)
            options = QuantisationOptions(calibration=pictures if precision == "fp8" else None)
            graphs = graphs_from_checkpoint(
                checkpoint,
                policy,
                directory,
                Silent(),
                quantisations(policy, options),
                traces=traces,
            )
            made[kind, precision] = checkpoint, graphs
        return made[kind, precision]

    return export


# Whatever else an OPT may be, BLIP-2 on T5, MiniGPT-4: parts that the others prove in fp16.
OTHERS = [("other-opt", "fp32"), exhaustive("blip2-t5", "fp32"), ("minigpt4", "fp32")]
# Language models with LLaMA's layers, one with a parallel residual, one with T5's layers.
NEWER = ("mistral", "qwen2", "gpt-neox", "mt5")
OTHERS += [("qwen2", "fp32"), ("gpt-neox", "fp32")]
OTHERS += [exhaustive(kind, "fp32") for kind in ("mistral", "mt5")]
WORDS = ("fp16", "bf16", "language_model=int8")
OTHERS += [exhaustive(kind, word) for kind in NEWER for word in WORDS]
# A T5 of 32 random channels is another model in 4 bits.
OTHERS += [exhaustive(kind, "int4") for kind in NEWER[:3]]
NARROW = [("flant5", "lavis"), ("vicuna", "int8"), ("vicuna", "fp8")]
MERGE = [("minigpt4-merge", "fp32"), exhaustive("minigpt4-merge", "fp16")]


@pytest.mark.parametrize(("kind", "precision"), [*ALL, *OTHERS, *NARROW, *MERGE])
def test_every_graph_agrees_with_transformers(exported, kind, precision):
    checkpoint, graphs = exported(kind, precision)
    for proof in verify_graphs(graphs, checkpoint, Silent()):
        assert proof.figures["passed"]
        assert proof.figures["cases"] >= 3


def test_a_component_that_is_handed_fp16_is_held_to_fp16(exported):
    checkpoint, graphs = exported("vicuna", "vision_encoder=fp16")
    proofs = {proof.graph.component: proof for proof in verify_graphs(graphs, checkpoint, Silent())}
    assert proofs["qformer"].graph.precision == "fp32"
    assert proofs["qformer"].figures["limits"] == {"cosine": 0.9999}
    assert proofs["language_model"].figures["limits"] == {"max_abs": 1e-4}


def test_a_changed_weight_is_caught_and_named(exported, tmp_path):
    checkpoint, graphs = exported("vicuna", "fp16")
    graph = next(graph for graph in graphs if graph.component == "qformer")
    copy = shutil.copytree(graph.path.parent, tmp_path / "qformer")
    weights = copy / "model.weights"
    values = np.fromfile(weights, np.float16)
    values[len(values) // 2 :] *= 1.5
    values.tofile(weights)
    damaged = [
        type(g)(**{**vars(g), "path": copy / g.path.name}) if g is graph else g for g in graphs
    ]
    with pytest.raises(VerificationError, match="qformer/model: visual_prompt, batch"):
        verify_graphs(damaged, checkpoint, Silent())


def test_unchanged_weights_are_the_checkpoints_own_bytes(exported):
    checkpoint, graphs = exported("vicuna", "fp32")
    for graph in graphs:
        (weights,) = graph.weights
        assert weights.samefile(checkpoint.files[0])


def test_no_matrix_is_copied_where_the_checkpoint_has_the_builds_dtype(tiny_copy, traces, tmp_path):
    directory = tiny_copy("flant5")
    tensors = load_file(directory / "model.safetensors")
    halves = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    save_file(halves, directory / "model.safetensors")
    checkpoint = checkpoint_from_directory(directory)
    policy = PrecisionPolicy.parse("fp16")
    graphs = graphs_from_checkpoint(checkpoint, policy, tmp_path, Silent(), traces=traces)
    tensors = [
        tensor
        for graph in graphs
        for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer
    ]
    matrices = [tensor for tensor in tensors if tensor.external_data and len(tensor.dims) > 1]
    places = [{e.key: e.value for e in tensor.external_data}["location"] for tensor in matrices]
    assert len(places) > 20
    assert set(places) == {"model.safetensors"}
    for proof in verify_graphs(graphs, checkpoint, Silent()):
        assert proof.figures["passed"]


def test_pieces_of_bin_give_the_same_graphs_and_are_not_copied(
    exported, tiny_copy, traces, tmp_path
):
    directory = tiny_copy("vicuna")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    pieces = {name: f"pytorch_model-{i % 2 + 1}.bin" for i, name in enumerate(tensors)}
    for piece in set(pieces.values()):
        part = {name: tensors[name] for name in tensors if pieces[name] == piece}
        torch.save(part, directory / piece)
    index = {"weight_map": pieces}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "graphs").mkdir()
    checkpoint = checkpoint_from_directory(directory)
    policy = PrecisionPolicy.parse("fp32")
    graphs = graphs_from_checkpoint(
        checkpoint, policy, tmp_path / "graphs", Silent(), traces=traces
    )
    _, wanted = exported("vicuna", "fp32")
    assert [graph.digest for graph in graphs] == [graph.digest for graph in wanted]
    own = {path.stat().st_ino for path in checkpoint.files}
    assert {path.stat().st_ino for graph in graphs for path in graph.weights} == own


def test_graphs_of_a_component_share_their_casts(exported):
    for kind in KINDS:
        _, graphs = exported(kind, "fp16")
        by_name = {g.name: g for g in graphs if g.component == "language_model"}
        written = {path.name for path in by_name["decoder"].path.parent.glob("*.weights")}
        assert "batched_decoder.weights" not in written
        assert set(by_name["batched_decoder"].weights) <= {
            path for graph in by_name.values() for path in graph.weights
        }


def test_fp16_keeps_its_islands_in_fp32(exported):
    _, graphs = exported("flant5", "fp16")
    dtypes = {}
    for graph in graphs:
        for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer:
            dtypes[tensor.name] = onnx.TensorProto.DataType.Name(tensor.data_type)
    islands = [name for name in dtypes if name.endswith(".wo.weight") or "layer_norm1" in name]
    assert len(islands) == 8
    assert {dtypes[name] for name in islands} == {"FLOAT"}
    assert dtypes["vision_model.encoder.layers.0.mlp.fc1.weight"] == "FLOAT16"
    assert dtypes["language_model.lm_head.weight"] == "FLOAT16"


def test_lavis_narrows_matrices_alone(exported):
    _, graphs = exported("flant5", "lavis")
    kinds = {}
    for graph in graphs:
        for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer:
            kinds[tensor.name] = onnx.TensorProto.DataType.Name(tensor.data_type)
    vision = {name: kind for name, kind in kinds.items() if name.startswith("vision_model.")}
    narrow = {name for name, kind in vision.items() if kind == "FLOAT16"}
    words = ("qkv", "projection", "fc1", "fc2", "patch_embedding")
    assert narrow == {name for name in vision if any(f".{word}." in name for word in words)}
    assert set(vision.values()) == {"FLOAT16", "FLOAT"}
    assert kinds["vision_model.embeddings.class_embedding"] == "FLOAT"
    assert not any("16" in kind for name, kind in kinds.items() if name.startswith("qformer."))
    assert kinds["language_model.lm_head.weight"] == "BFLOAT16"


def test_int4_leaves_no_matrix_of_the_decoder_in_full(exported):
    _, graphs = exported("opt", "int4")
    decoders = [graph for graph in graphs if graph.name in ("decoder", "batched_decoder")]
    assert len(decoders) == 2
    for graph in decoders:
        tensors = onnx.load(graph.path, load_external_data=False).graph.initializer
        full = [t.name for t in tensors if t.data_type == 1 and len(t.dims) == 2]
        rest = [name for name in full if not name.endswith(".int4_scales")]
        tables = ["positions"] if graph.name == "decoder" else ["positions", "tokens"]
        assert sorted(rest) == [f"language_model.model.decoder.embed_{t}.weight" for t in tables]


def test_a_graph_has_exactly_its_contract(exported):
    _, graphs = exported("flant5", "fp32")
    for graph in graphs:
        proto = onnx.load(graph.path, load_external_data=False).graph
        assert [value.name for value in proto.input] == [s.name for s in graph.contract.inputs]
        for value, spec in zip(proto.input, graph.contract.inputs, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert tuple(dim.dim_param or dim.dim_value for dim in dims) == spec.axes


def test_no_path_of_the_machine_is_in_a_graph(exported):
    _, graphs = exported("vicuna", "fp32")
    for graph in graphs:
        assert b"site-packages" not in graph.path.read_bytes()


def test_a_digest_is_of_the_weights_and_not_of_their_place(exported, tmp_path):
    _, graphs = exported("vicuna", "fp16")
    for graph in graphs:
        assert digest_from_onnx(graph.path) == graph.digest
    moved = shutil.copytree(graphs[0].path.parent, tmp_path / "moved")
    assert digest_from_onnx(moved / "model.onnx") == graphs[0].digest


def test_a_build_that_was_written_to_is_told(vicuna_build, tmp_path):
    build = shutil.copytree(vicuna_build, tmp_path / "build", symlinks=True)
    check_digests(build, Manifest.read(build))
    weights = build / "graphs" / "vision_encoder" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # the last tensor of the file is a vision weight, in order of name
    weights.write_bytes(data)
    with pytest.raises(BuildDirectoryError, match="vision_encoder/model has digest"):
        check_digests(build, Manifest.read(build))
