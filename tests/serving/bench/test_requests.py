"""What is asked, and the files of the same for other load generators."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from iblip.export.errors import InputError, OptionError
from iblip.serving.bench.inputs import AIPERF, PERF_ANALYZER, write_inputs
from iblip.serving.bench.requests import MOST_ROWS, Mix, Requests, Span
from iblip.serving.bulk.rows import BulkRow, read_rows
from tests.serving.bulk.answerers import SMALL

IMAGE = np.full((8, 8, 3), 7, np.uint8)


def made(count=40, **mix):
    requests = Requests(Mix(**mix), SMALL)
    return [requests[number] for number in range(count)]


def test_noise_differs_from_request_to_request_and_not_from_run_to_run():
    first, second = made(), made()
    assert len({one.pixels.tobytes() for one in first}) == 40
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    assert first[0].pixels.shape == (1, 8, 8, 3)


def test_lengths_are_spread_over_the_whole_range():
    asked = made(300, tokens=Span(least=3, most=6), words=Span(least=1, most=4), prompt="a b c")
    lengths = {(one.options.min_new_tokens, one.options.max_new_tokens) for one in asked}
    assert lengths == {(n, n) for n in (3, 4, 5, 6)}
    assert {one.prompt for one in asked} == {"a", "a b", "a b c", "a b c a"}


def test_rows_keep_their_own_prompts_and_options():
    rows = [
        BulkRow(id="1", image=IMAGE, prompts=("one", "two"), options={"max_new_tokens": 5}),
        BulkRow(id="2", image=[IMAGE, IMAGE]),
    ]
    asked = made(4, rows=rows, tokens=Span(least=9, most=9), prompt="else")
    assert [one.prompt for one in asked] == ["one", "two", "else", "one"]
    assert [one.options.max_new_tokens for one in asked] == [5, 5, 9, 5]
    assert asked[2].pixels.shape == (2, 8, 8, 3)
    assert asked[0].options.min_new_tokens == 0


def test_no_more_rows_are_read_than_are_used():
    read = []

    def rows():
        for number in range(10 * MOST_ROWS):
            read.append(number)
            yield BulkRow(id=str(number), image=IMAGE)

    made(1, rows=rows())
    assert len(read) == MOST_ROWS


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"prompt": "no image"}, "its image is"),
        ({"image": "a.png", "options": {"top_q": 1}}, "top_q"),
    ],
)
def test_a_row_that_cannot_be_asked_is_told_before_anything_is(tmp_path, row, said):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises((InputError, OptionError), match=said):
        made(1, rows=read_rows(path))


def test_an_input_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        made(1, rows=read_rows(tmp_path))


@pytest.mark.parametrize("text", ["", "0", "5-3", "0-4", "a", "1-2-3", "-1", "1e3", "9" * 30])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(OptionError, match="length"):
        Span.parse(text)


def test_inputs_hold_the_requests_of_the_bench(tmp_path):
    asked = made(3, tokens=Span(least=2, most=5))
    write_inputs(tmp_path / "in", asked)
    data = json.loads((tmp_path / "in" / PERF_ANALYZER).read_text())["data"]
    turns = [json.loads(line) for line in (tmp_path / "in" / AIPERF).read_text().splitlines()]
    assert len(data) == len(turns) == 3
    for request, tensors, turn in zip(asked, data, turns, strict=True):
        (png,) = tensors["image"]["content"]
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            assert np.array_equal(np.asarray(image), request.pixels[0])
        assert tensors["image"]["shape"] == tensors["prompt"]["shape"] == [1]
        assert tensors["prompt"]["content"] == [turn["text"]] == [request.prompt]
        assert turn["images"] == [f"data:image/png;base64,{png}"]
        assert turn["output_length"] == request.options.max_new_tokens
        assert turn["extra"] == {"min_new_tokens": request.options.min_new_tokens}


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(OptionError, match="not an empty directory"):
        write_inputs(tmp_path, made(1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
