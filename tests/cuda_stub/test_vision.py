"""Vision encoder and Q-Former: operators a layer, the kernels of attention, one graph a run."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from iblip.engines.onnxruntime.probing import preload_cuda
from iblip.engines.onnxruntime.providers import Placement
from iblip.engines.onnxruntime.session import load_onnxruntime, offer_providers
from iblip.engines.runners import open_runner
from iblip.export.artifact.manifest import Manifest
from iblip.export.graph.onnxruntime_values import session_from_onnx
from tests.cuda_stub.bounds import LAYERS
from tests.cuda_stub.counting import counted

pytestmark = pytest.mark.cuda_stub

DEMO = "instructblip-demo-vicuna"

LAYER = re.compile(r"(encoder\.layers?)\.(\d+)\.")


@pytest.mark.parametrize("component", LAYERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "lavis"])
def test_a_layer_has_few_operators(component, precision, cuda_build, record):
    ort = load_onnxruntime()
    preload_cuda(ort)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = cuda_build(DEMO, precision) / "graphs" / component / "model.onnx"
    providers = offer_providers(ort, options, Placement(kind="onnxruntime-cuda"))
    session = session_from_onnx(path, options, providers)
    layers: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if match := LAYER.search(node.name):
                layers[match[2]] += 1
    bound = LAYERS[component][precision]
    record(f"{DEMO} {precision} {component}, a layer", operators=(max(layers.values()), bound))
    assert max(layers.values()) <= bound


@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
@pytest.mark.parametrize(("batch", "run"), [(1, 1), (3, 4), (8, 8)])
def test_a_run_is_one_graph_between_two_copies(component, batch, run, cuda_build, record):
    build = cuda_build(DEMO, "fp16")
    with open_runner(build, Manifest.read(build), component) as runner:
        feed = {
            spec.name: np.zeros(
                [{"batch": batch, "instruction": 5}.get(axis, axis) for axis in spec.axes],
                spec.numpy_dtype,
            )
            for spec in runner.contract.inputs
        }
        runner.infer(feed)
        with counted() as counts:
            outputs = runner.infer(feed)
        assert counts["graph_launches"] == 1
        assert counts["launches"] == 0
        assert counts.copies == len(feed) + len(outputs)
        assert counts["synchronizations"] <= len(feed) + 1
        record(
            f"{component}, batch {batch} in the graph of {run}",
            graphs=counts["graph_launches"],
            copies=counts.copies,
            synchronizations=counts["synchronizations"],
        )
        for spec in runner.contract.outputs:
            assert outputs[spec.name].shape[0] == batch
        with counted() as counts:
            runner.infer({name: np.zeros((9, *a.shape[1:]), a.dtype) for name, a in feed.items()})
        assert counts["graph_launches"] == 0
        assert counts["launches"] > 20


ATTENTION = """
import sys
import onnx, onnx_ir as ir, numpy as np, onnxruntime
from iblip.export.graph.fusion import fuse
from iblip.export.graph.onnxruntime_values import BFLOAT16
from iblip.engines.onnxruntime.probing import preload_cuda

kind, length, heads, width, masked = sys.argv[1], *map(int, sys.argv[2:])
size = heads * width
mask = f", float[batch, 1, 1, {length}] mask" if masked else ""
added = "masked = Add(wide, mask)" if masked else "masked = Identity(wide)"
model = ir.from_onnx_text(f'''<ir_version: 10, opset_import: ["" : 20]>
graph ({kind}[batch, {length}, {size}] q, {kind}[batch, {length}, {size}] k,
       {kind}[batch, {length}, {size}] v{mask}) => ({kind}[batch, {length}, {size}] y) {{
    shape = Constant<value_ints = [0, 0, {heads}, {width}]>()
    flat = Constant<value_ints = [0, 0, {size}]>()
    q4 = Reshape(q, shape)
    k4 = Reshape(k, shape)
    v4 = Reshape(v, shape)
    qh = Transpose<perm = [0, 2, 1, 3]>(q4)
    kh = Transpose<perm = [0, 2, 1, 3]>(k4)
    vh = Transpose<perm = [0, 2, 1, 3]>(v4)
    kt = Transpose<perm = [0, 1, 3, 2]>(kh)
    scores = MatMul(qh, kt)
    wide = Cast<to = 1>(scores)
    {added}
    weights = Softmax<axis = -1>(masked)
    narrow = Cast<to = {dict(float16=10, bfloat16=16)[kind]}>(weights)
    mixed = MatMul(narrow, vh)
    turned = Transpose<perm = [0, 2, 1, 3]>(mixed)
    y = Reshape(turned, flat)
}}''')
for node in model.graph:
    if node.op_type == "Reshape" and node.outputs[0].name != "y":
        node.outputs[0].shape = ir.Shape(["batch", length, heads, width])
import onnx_ir.passes.common as passes
passes.IdentityEliminationPass()(model)
assert fuse(model)
preload_cuda(onnxruntime)
options = onnxruntime.SessionOptions()
session = onnxruntime.InferenceSession(
    ir.to_proto(model).SerializeToString(), options, providers=["CUDAExecutionProvider"]
)
feed = {}
for value in session.get_inputs():
    shape = [1 if isinstance(axis, str) else axis for axis in value.shape]
    array = np.zeros(shape, np.float32 if value.type == "tensor(float)" else np.uint16)
    make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    feed[value.name] = make(array, {"float16": 10, "bfloat16": BFLOAT16}.get(
        value.type.removeprefix("tensor(").removesuffix(")"), 1))
session.run_with_ort_values(["y"], feed)
"""

KERNELS = {
    "ViT-g": ((257, 16, 88, 0), "flash_fwd"),
    "Q-Former without an instruction": ((32, 12, 64, 0), "flash_fwd"),
    "Q-Former with one": ((40, 12, 64, 1), "attention_kernel_batched"),
}
"""Length, heads, width of a head, whether there is a mask; and the kernel that is launched."""


@pytest.mark.parametrize("model", KERNELS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_attention_of_true_size_is_a_fused_kernel(model, kind, in_process_of_its_own, tmp_path):
    sizes, kernel = KERNELS[model]
    log = tmp_path / "log"
    ran = in_process_of_its_own(ATTENTION, kind, *sizes, log=log)
    assert ran.returncode == 0, ran.stderr
    text = log.read_text()
    assert kernel in text
    assert "Softmax" not in text
