"""`iblip ask` against a real server, as a person sees it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from iblip.serving.cli import iblip
from iblip.serving.cli.documents import DOCUMENTS


def run(*arguments, **options):
    return CliRunner().invoke(iblip, ["ask", *map(str, arguments)], **options)


@pytest.fixture
def whole(served, picture):
    return served.in_process(picture, "Describe the image.").text


def test_the_answer_and_nothing_else(served, picture, whole):
    done = run(picture, "Describe the image.", "--url", served.url)
    assert (done.exit_code, done.output) == (0, whole + "\n")


def test_streamed_it_is_the_same(served, picture, whole):
    done = run(picture, "Describe the image.", "--url", served.url, "--stream")
    assert (done.exit_code, done.output) == (0, whole + "\n")


def test_as_json(served, picture, whole):
    done = run(picture, "Describe the image.", "--url", served.url, "--json")
    answer = json.loads(done.output)
    assert answer["text"] == whole
    assert answer["finish_reason"] in ("eos", "length")


def test_streamed_as_json_every_line_is_an_object(served, picture, whole):
    done = run(picture, "Describe the image.", "--url", served.url, "--json", "--stream")
    *pieces, last = [json.loads(line) for line in done.output.splitlines()]
    assert "".join(piece["delta"] for piece in pieces) == last["text"] == whole


def test_candidates_are_printed_the_likeliest_first(served, picture):
    candidates = [word for digit in "0123456789" for word in ("--candidate", digit)]
    asked = [picture, "What digit is in the image?", "--url", served.url, *candidates]
    said = run(*asked[:4]).output.strip()
    lines = run(*asked).output.splitlines()
    ranking = json.loads(run(*asked, "--json").output)["ranking"]
    assert lines == [f"{found['score']:10.4f}  {found['text']}" for found in ranking]
    assert ranking[0]["text"] == said
    assert len(lines) == 10


def test_an_image_from_standard_input(served, picture, whole):
    done = run("-", "Describe the image.", "--url", served.url, input=picture.read_bytes())
    assert (done.exit_code, done.output) == (0, whole + "\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.png", "What?"], 2, "error: invalid value for 'IMAGE...': there is no image"),
        (["PICTURE", " "], 2, "error: the prompt is empty"),
        (["PICTURE", "What?", "--top-p", "7"], 2, "error: top_p is 7.0; expected a number"),
        (["PICTURE", "What?", "--timeout", "0"], 2, "error: timeout is 0.0"),
        (["PICTURE", "What?", "--timeout", "0.000001"], 1, "error: the answer was not finished"),
        (
            ["PICTURE", "What?", "--url", "127.0.0.1:1"],
            1,
            "error: no server answers at 127.0.0.1:1",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_with_a_status(served, picture, arguments, status, message):
    filled = [str(picture) if word == "PICTURE" else word for word in arguments]
    url = [] if "--url" in filled else ["--url", served.url]
    done = run(*filled, *url)
    assert done.exit_code == status
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_json_has_the_fields_that_are_documented(served, picture):
    answer = json.loads(run(picture, "What is it?", "--url", served.url, "--json").output)
    assert next(iter(answer)) == "format"
    assert set(answer) == {"format", *DOCUMENTS["ask"]}


def test_a_deadline_names_its_option(served, picture):
    done = run(picture, "Describe the image.", "--url", served.url, "--timeout", "0.0001")
    assert done.exit_code == 1
    assert done.stderr.endswith("Give more with --timeout.\n")


def test_an_image_that_is_not_there_is_told_without_a_server():
    done = run("nowhere.png", "Describe the image.", "--url", "127.0.0.1:1")
    assert done.exit_code == 2
    assert "there is no image nowhere.png" in done.stderr
