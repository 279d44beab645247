"""What a request over HTTP may be."""

from __future__ import annotations

import gzip
import json
import random
import zlib

import pytest

from iblip.export.errors import OptionError
from iblip.serving.server.wall.limits import (
    MAX_BRACKETS,
    MAX_DEPTH,
    MIB,
    WINDOW,
    Limits,
    RefusedError,
    check,
    decompressed,
    depth_exceeds,
    json_length,
    takes_tensors,
)


def nested(depth, kind="[]", inner=b"1"):
    return kind[:-1].encode() * depth + inner + kind[-1:].encode() * depth


def objects(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_depth_up_to_the_limit_passes_and_one_more_does_not():
    for make in (nested, objects):
        check(make(MAX_DEPTH), 1000, Limits())
        with pytest.raises(RefusedError, match=f"more than {MAX_DEPTH} brackets deep"):
            check(make(MAX_DEPTH + 1), 1000, Limits())


def test_width_is_no_depth():
    check(b"[" + b",".join([nested(MAX_DEPTH - 1)] * 2000) + b"]", 1000, Limits())


def test_what_alternates_is_refused_at_twice_the_limit():
    check((b'[{"a":' * 32 + b"1" + b"}]" * 32), 1000, Limits())
    with pytest.raises(RefusedError, match="brackets deep"):
        check((b'[{"a":' * MAX_DEPTH + b"[1]" + b"}]" * MAX_DEPTH), 1000, Limits())


def true_depth(value):
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(true_depth, value), default=0) if isinstance(value, list) else 0


def any_value(dice, depth):
    """A value of JSON, with strings that try to look like brackets, quotes and escapes."""
    kind = dice.random()
    text = "".join(dice.choices(["[", "]", "{", "}", '"', "\\", "\n", "ü", "a", "\\u0022"], k=5))
    if depth == 0 or kind < 0.3:
        return text
    if kind < 0.65:
        return [any_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {text + str(i): any_value(dice, depth - 1) for i in range(dice.randrange(4))}


def test_brackets_in_strings_do_not_count():
    dice = random.Random(0)
    deep = 0
    for _ in range(2000):
        value = any_value(dice, 8)
        depth = true_depth(value)
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            assert not depth_exceeds(text.encode(), depth)
            assert depth_exceeds(text.encode(), (depth - 1) // 2) == (depth > 0)
        deep += depth > 4
    assert deep > 100


def test_a_string_may_reach_over_windows():
    for size in (WINDOW - 3, WINDOW - 2, WINDOW - 1, WINDOW, 3 * WINDOW):
        text = json.dumps(["[" * size, "]", '"', "{" * size]).encode()
        assert not depth_exceeds(text, 1)
        assert depth_exceeds(text + nested(4), 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "not JSON"),
        (b'{"a":1}{"a":1}', "not JSON"),
        (b'{"a":1,"a":2}', "'a' occurs twice"),
        (b"9" * 5000, "not JSON"),
        (nested(100_000), "nested too deeply"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a":1}'.encode("utf-16"), "not JSON"),
    ],
)
def test_what_is_not_json_is_refused(text, fault):
    with pytest.raises(RefusedError, match=fault) as caught:
        check(text, len(text), Limits())
    assert caught.value.status == 400


def test_strings_need_not_be_utf_8():
    check(b'{"id":"\xff"}', 12, Limits())


def test_json_has_a_limit_of_its_own():
    with pytest.raises(RefusedError, match="more than 10 bytes") as caught:
        check(b'"123456789"', 11, Limits(json=10))
    assert caught.value.status == 413


def test_there_is_an_end_to_arrays_and_objects():
    many = b"[" + b",".join([b"[]"] * (MAX_BRACKETS - 1)) + b"]"
    check(many, len(many), Limits())
    with pytest.raises(RefusedError, match="more than 1000000 arrays and objects") as caught:
        check(b"[{}," + many[1:], len(many), Limits())
    assert caught.value.status == 413


def shaped(shape, **more):
    return json.dumps({"inputs": [{"name": "a", "shape": shape, **more}]}).encode()


@pytest.mark.parametrize("shape", [[101], [10, 11], [-101], [2**70], [2**32, 2**32], [1, 1, 101]])
def test_a_shape_of_more_elements_than_bytes_is_refused(shape):
    with pytest.raises(RefusedError, match="more elements than the body has bytes \\(100\\)"):
        check(shaped(shape), 100, Limits())
    check(shaped(shape, parameters={"shared_memory_region": "a"}), 100, Limits())
    with pytest.raises(RefusedError, match="more elements"):
        check(shaped(shape, parameters={"shared_memory_region": 1}), 100, Limits())


@pytest.mark.parametrize(
    "shape", [[100], [0, 2**70], [], None, "a", [1.5, 1e300], [True] * 200, {}]
)
def test_other_shapes_are_for_triton_to_refuse(shape):
    check(shaped(shape), 100, Limits())


def test_only_inference_takes_tensors_after_its_json():
    assert takes_tensors("/v2/models/a/infer")
    assert takes_tensors("/v2/models/a.b-c/versions/3/infer?x=/y")
    for path in (
        "/v2/models/a/generate",
        "/v2/models/a/infer/",
        "/v2/models/a/b/infer",
        "/v2/logging?/v2/models/a/infer",
        "/v2/models/a%2Finfer",
        "/V2/models/a/infer",
        "/v2/models/a/versions/x/infer",
    ):
        assert not takes_tensors(path), path


def test_the_length_of_json_is_part_of_the_body():
    assert json_length([], 7) == 7
    assert [json_length([value], 7) for value in ("0", "07", "7")] == [0, 7, 7]
    for values in (
        ["8"],
        ["-1"],
        [""],
        ["1", "1"],
        ["1,1"],
        [" 1"],
        ["+1"],
        ["1" * 20],
        ["\u0661"],
    ):
        with pytest.raises(RefusedError, match="Inference-Header-Content-Length is"):
            json_length(values, 7)


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_body_is_decompressed_up_to_a_limit(name, compress):
    plain = bytes(1000)
    assert decompressed(compress(plain), name, 1000) == plain
    with pytest.raises(RefusedError, match="decompressed, has more than 999 bytes") as caught:
        decompressed(compress(plain), name, 999)
    assert caught.value.status == 413
    for broken in (compress(plain)[:-1], compress(plain) + b"a", b"a", plain):
        with pytest.raises(RefusedError, match="the body is not") as caught:
            decompressed(broken, name, 1000)
        assert caught.value.status == 400


def test_other_ways_to_compress_are_named():
    assert decompressed(b"a", "identity", 1) == b"a"
    with pytest.raises(RefusedError, match="'br'; expected gzip or deflate") as caught:
        decompressed(b"a", "br", 1)
    assert caught.value.status == 415


@pytest.mark.parametrize("size", [0, -1, 1025 * MIB])
def test_a_limit_is_in_a_range(size):
    with pytest.raises(OptionError, match="expected 1 to 1024 MiB"):
        Limits(body=size)
