"""Language models whose weights have 4 or 8 bits run on CUDA whole, in 16 bits around them."""

from __future__ import annotations

from collections import Counter

import pytest

from iblip.engines.onnxruntime.probing import preload_cuda
from iblip.engines.onnxruntime.providers import CPU_PROVIDER, Placement
from iblip.engines.onnxruntime.session import load_onnxruntime, offer_providers
from iblip.export.artifact.manifest import Manifest
from iblip.export.graph.onnxruntime_values import session_from_onnx
from tests.cuda_stub.bounds import PRODUCTS

pytestmark = pytest.mark.cuda_stub


@pytest.mark.parametrize(
    ("demo", "word", "settled"),
    [
        ("instructblip-demo-vicuna", "int4", "int4-fp16"),
        ("blip2-demo-opt", "int8", "int8-fp16"),
        ("blip2-demo-flant5", "int4", "int4-bf16"),
    ],
)
def test_small_weights_are_multiplied_on_the_gpu(demo, word, settled, cuda_build, record):
    build = cuda_build(demo, f"vision_encoder=fp16,qformer=fp16,language_model={word}")
    model = Manifest.read(build).components["language_model"]
    assert model.precision == settled
    ort = load_onnxruntime()
    preload_cuda(ort)
    for graph in ("embed_tokens", "batched_decoder", *({"encoder"} & model.graphs.keys())):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = offer_providers(ort, options, Placement(kind="onnxruntime-cuda"))
        session = session_from_onnx(build / model.graphs[graph].path, options, providers)
        nodes = {True: Counter(), False: Counter()}
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name == CPU_PROVIDER].update(node.op_type for node in part.get_nodes())
        record(f"{demo} {settled} {graph}", cuda=nodes[False].total(), cpu=nodes[True].total())
        assert not PRODUCTS & nodes[True].keys(), (graph, nodes[True])
        assert "GroupQueryAttention" in nodes[False] or graph != "batched_decoder"
        if graph != "embed_tokens":
            assert nodes[False]["MatMulNBits"] > 20
