"""What is measured before weights are quantised, on the demo's own pictures."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import preprocessing
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.errors import OptionError
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.trace_cache import trace_key
from iblip.export.graph.tracing import trace
from iblip.export.images import pixels_from_image
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent
from iblip.export.quantisation.calibration import measure, samples_from
from iblip.export.quantisation.formats import FORMATS
from iblip.export.quantisation.graph import quantise
from iblip.export.quantisation.measuring import static_scale
from iblip.export.quantisation.options import Quantisation, QuantisationOptions, quantisations
from iblip.export.quantisation.running import run_in_pieces
from iblip.export.weights.binding import bind

STATIC = Quantisation(bits=8, activations="static", sensitive=0.1)
INT4 = Quantisation(bits=4, block_size=32, sensitive=0.1)


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return checkpoint_from_directory(checkpoints / "instructblip-demo-vicuna")


@pytest.fixture(scope="module")
def vision(checkpoint):
    return components_from_checkpoint(checkpoint, PrecisionPolicy.parse("fp32"))[0]


@pytest.fixture
def trace_of(traces):
    """`trace_of(component)`: a trace of the test's own, which it may quantise."""

    def load(component):
        key = trace_key(component)
        if traces.load(key, component) is None:
            traces.keep(key, trace(component))
        return traces.load(key, component)

    return load


@pytest.fixture
def traced(vision, trace_of):
    return trace_of(vision)


def test_in_pieces_a_graph_gives_what_it_gives_whole(checkpoint, vision, traced, traces, tmp_path):
    samples = [
        {"pixels": pixels_from_image(sample.image, preprocessing(checkpoint))[None]}
        for sample in samples_from(checkpoint, None)[:2]
    ]
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    seen = []
    made = run_in_pieces(traced.model, recipes, samples, lambda p, x: seen.append((p.name, x)))
    graph = onnx_from_component(vision, checkpoint, tmp_path, Silent(), traces=traces)
    session = onnxruntime.InferenceSession(graph.path)
    for sample, outputs in zip(samples, made, strict=True):
        (wanted,) = session.run(None, sample)
        np.testing.assert_allclose(outputs["image_embeds"], wanted, atol=1e-4)
    layers = checkpoint.config.vision_config.num_hidden_layers
    assert len(seen) == len({name for name, _ in seen}) == 4 * layers
    assert all(len(inputs) == 2 for _, inputs in seen)


def test_what_comes_before_may_be_bfloat16(checkpoint, trace_of):
    policy = PrecisionPolicy.parse("vision_encoder=bf16")
    component = components_from_checkpoint(checkpoint, policy)[0]
    found = trace_of(component)
    recipes = bind(found.weights, checkpoint.tensors, found.tied)
    path = samples_from(checkpoint, None)[0].image
    pixels = pixels_from_image(path, preprocessing(checkpoint))[None]
    (made,) = run_in_pieces(found.model, recipes, [{"pixels": pixels}], lambda p, x: None)
    (spec,) = component.contract.outputs
    assert made["image_embeds"].dtype == spec.numpy_dtype
    assert np.isfinite(made["image_embeds"]).all()


def test_the_worst_products_stay_in_float32(checkpoint, traced):
    found = measure([traced], checkpoint, {"vision_encoder": STATIC}, Silent())["vision_encoder"]
    assert set(found.scales) == set(found.errors)
    assert 0 < min(found.errors.values()) < max(found.errors.values()) < 0.05
    assert found.sensitive[0] == max(found.errors, key=lambda name: found.errors[name])
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    made = quantise(traced.model, recipes, found)
    assert set(found.sensitive) == set(made) & set(found.errors)
    kinds = [node.op_type for node in traced.model.graph]
    quantised = len(found.errors) - len(found.sensitive)
    assert kinds.count("QuantizeLinear") == quantised
    assert kinds.count("DequantizeLinear") == 2 * quantised
    report = found.to_json()
    assert report["measured_on"] == "16 images"
    assert list(report["more_precise"]) == list(found.sensitive)


def test_what_is_computed_in_halves_is_measured_in_floats(checkpoint, trace_of):
    policy = PrecisionPolicy.parse("vision_encoder=fp8")
    traced = trace_of(components_from_checkpoint(checkpoint, policy)[0])
    given = quantisations(policy, QuantisationOptions())
    found = measure([traced], checkpoint, given, Silent())["vision_encoder"]
    assert all(0.005 < error < 0.05 for error in found.errors.values())
    recipes = bind(traced.weights, checkpoint.tensors, traced.tied)
    made = quantise(traced.model, recipes, found)
    for name in found.errors.keys() - set(found.sensitive):
        scale = traced.model.graph.initializers[f"{name}.input_scale"].const_value.numpy()
        assert scale.dtype == np.float16
        assert 0 < found.scales[name] <= scale < 1.01 * found.scales[name]
        assert made[f"{name}.e4m3_scales"].dtype == "float16"
    assert all(made[name].dtype == "float16" for name in found.sensitive)


def test_without_images_weights_are_looked_at_and_static_is_refused(checkpoint, traced, tmp_path):
    bare = replace(checkpoint, directory=tmp_path)
    found = measure([traced], bare, {"vision_encoder": INT4}, Silent())["vision_encoder"]
    assert found.to_json()["measured_on"] == "weights alone"
    assert all(0.03 < error < 0.15 for error in found.errors.values())
    dynamic = replace(STATIC, activations="dynamic")
    found = measure([traced], bare, {"vision_encoder": dynamic}, Silent())["vision_encoder"]
    assert found.sensitive == ()
    assert found.to_json()["sensitive"] == 0.0
    with pytest.raises(OptionError, match=r"has no examples\. Name a directory of images with"):
        measure([traced], bare, {"vision_encoder": STATIC}, Silent())


def test_a_folder_of_images_is_measured_on_or_refused_without_one(checkpoint, tmp_path):
    with pytest.raises(OptionError, match="has no image"):
        samples_from(checkpoint, tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    found = samples_from(checkpoint, tmp_path)
    assert [sample.image.name for sample in found] == ["a.JPG", "b.png"]


def test_a_static_scale_cuts_an_outlier_off():
    usual = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([usual, torch.tensor([10.0])])
    assert 0.3 * 10 / 127 <= static_scale(values, FORMATS["int"]) < 0.9 * 10 / 127
    assert static_scale(torch.zeros(3), FORMATS["int"]) == 1.0


def test_a_static_scale_of_floats_has_room_for_an_outlier():
    usual = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    scale = static_scale(torch.cat([usual, torch.tensor([100.0])]), FORMATS["e4m3"])
    assert scale > 0.9 * 100 / 448
