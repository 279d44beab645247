from __future__ import annotations

import json
import os

import grimp
import pytest

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.trace_cache import TRACED_BY, TraceCache, trace_key
from iblip.export.graph.tracing import trace
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent
from iblip.export.quantisation.options import QuantisationOptions, quantisations
from tests.cases import exhaustive

KEY = "0" * 64


TITLES = ("vision_encoder/model", "language_model/embed_tokens", "language_model/batched_decoder")
"""Of the graphs that are traced with a cache and without: few, as it takes seconds."""


def exported(checkpoint, precision, directory, traces=None):
    directory.mkdir()
    policy = PrecisionPolicy.parse(precision)
    given = quantisations(policy, QuantisationOptions())
    return [
        onnx_from_component(
            one, checkpoint, directory, Silent(), given.get(one.component), traces=traces
        )
        for one in components_from_checkpoint(checkpoint, policy)
        if one.title in TITLES
    ]


def content(graphs):
    return [(graph.digest, graph.path.read_bytes()) for graph in graphs]


@pytest.fixture
def no_tracing(monkeypatch):
    def refuse(component):
        raise AssertionError(f"{component.title} was traced")

    return lambda: monkeypatch.setattr("iblip.export.exporter.trace", refuse)


@pytest.mark.parametrize(("kind", "precision"), [exhaustive("flant5", "lavis"), ("opt", "int4")])
def test_a_kept_trace_gives_the_same_graph_to_the_byte(tiny, tmp_path, no_tracing, kind, precision):
    checkpoint, cache = checkpoint_from_directory(tiny(kind)), TraceCache(tmp_path / "traces")
    wanted = content(exported(checkpoint, precision, tmp_path / "without"))
    assert content(exported(checkpoint, precision, tmp_path / "first", cache)) == wanted
    no_tracing()
    assert content(exported(checkpoint, precision, tmp_path / "second", cache)) == wanted


def keys(checkpoint, precision):
    components = components_from_checkpoint(checkpoint, PrecisionPolicy.parse(precision))
    return {one.title: trace_key(one) for one in components}


def test_a_key_follows_from_config_precision_and_code_but_not_from_weights(
    tiny, tiny_copy, monkeypatch
):
    plain = keys(checkpoint_from_directory(tiny("vicuna")), "fp16")
    assert len(set(plain.values())) == len(plain)
    copy = tiny_copy("vicuna")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert keys(checkpoint_from_directory(copy), "fp16") == plain

    narrowed = keys(checkpoint_from_directory(copy), "vision_encoder=int8-fp16,language_model=int4")
    whole = keys(checkpoint_from_directory(copy), "vision_encoder=fp16")
    assert narrowed == whole  # weights are made smaller in the graph, after it is traced

    mixed = keys(checkpoint_from_directory(copy), "vision_encoder=fp16,qformer=fp16")
    same = {title for title in plain if mixed[title] == plain[title]}
    assert same == {"vision_encoder/model", "qformer/model"}

    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (copy / "config.json").write_text(json.dumps(config))
    other = keys(checkpoint_from_directory(copy), "fp16")
    same = {title for title in plain if other[title] == plain[title]}
    assert same == {"vision_encoder/model", "qformer/model", "language_model/embed_tokens"}

    others = keys(checkpoint_from_directory(tiny("minigpt4")), "fp16")
    same = {title for title in plain if others[title] == plain[title]}
    assert same == {"vision_encoder/model", "language_model/embed_tokens"}  # whatever the family

    monkeypatch.setattr("iblip.export.graph.trace_cache.code_digest", lambda *_: "of other code")
    assert not set(keys(checkpoint_from_directory(tiny("vicuna")), "fp16").values()) & set(
        plain.values()
    )


def test_the_code_of_a_key_is_all_that_tracing_imports_but_for_what_it_takes_as_values():
    graph = grimp.build_graph("iblip", cache_dir=None)
    imported = graph.find_upstream_modules("iblip.export.graph.tracing")
    imported |= graph.find_upstream_modules("iblip.export.components.graphs_of_checkpoint")
    by_value = ("artifact", "checkpoint", "dequantisation", "errors", "messages")
    known = (*TRACED_BY, *(f"iblip.export.{name}" for name in (*by_value, "system", "weights")))
    assert {name for name in imported if not name.startswith(known)} == set()


@pytest.fixture(scope="module")
def traced(tiny):
    """A trace that is quickly made."""
    checkpoint = checkpoint_from_directory(tiny("vicuna"))
    components = components_from_checkpoint(checkpoint, PrecisionPolicy.parse("fp32"))
    return trace(next(one for one in components if one.graph == "embed_tokens"))


def test_a_damaged_trace_is_told_and_not_taken(traced, tmp_path, caplog):
    cache = TraceCache(tmp_path / "traces")
    assert cache.load(KEY, traced.component) is None
    cache.keep(KEY, traced)
    (path,) = cache.directory.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole + b"0", bytes(40) + whole[40:]):
        path.write_bytes(damaged)
        assert cache.load(KEY, traced.component) is None
        assert "is damaged; language_model/embed_tokens is traced anew" in caplog.text
        caplog.clear()
    cache.keep(KEY, traced)
    found = cache.load(KEY, traced.component)
    assert (found.weights, found.parameters) == (traced.weights, traced.parameters)


def test_a_cache_that_cannot_be_written_fails_no_build(traced, tmp_path):
    (tmp_path / "file").touch()
    cache = TraceCache(tmp_path / "file" / "traces")
    cache.keep(KEY, traced)
    assert cache.load(KEY, traced.component) is None


def test_what_was_not_used_for_longest_makes_room(traced, tmp_path, monkeypatch):
    cache = TraceCache(tmp_path / "traces")
    for age, key in enumerate("abc"):
        cache.keep(key * 64, traced)
        os.utime(cache.directory / f"{key * 64}.trace", (1e9 - age, 1e9 - age))
    assert cache.load("c" * 64, traced.component) is not None
    monkeypatch.setattr("iblip.export.graph.trace_cache.KEPT", 3)
    cache.keep("d" * 64, traced)
    assert {path.stem[0] for path in cache.directory.iterdir()} == set("acd")
