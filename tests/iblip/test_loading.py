"""`iblip.load`: a build in this process, asked with all that a client takes."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import iblip
from iblip import (
    CancelledError,
    DeadlineError,
    EngineError,
    GenerationOptions,
    InputError,
    OptionError,
    Timeout,
)
from iblip.engines.pipeline import Pipeline
from iblip.export.images import pixels_from_image
from iblip.serving.wire.contract import ServerContract

QUESTIONS = 6
LONG = GenerationOptions(min_new_tokens=400, max_new_tokens=400, temperature=5.0, seed=1)


@pytest.fixture(scope="module")
def model(vicuna_build):
    with iblip.load(str(vicuna_build)) as model:
        yield model


@pytest.fixture(scope="module")
def questions(examples):
    return examples[:QUESTIONS]


@pytest.fixture(scope="module")
def expected(vicuna_build, model, questions):
    """The texts of the pipeline below, which the engines' own tests compare with transformers."""
    with Pipeline(vicuna_build) as pipeline:
        settings = pipeline.manifest.preprocessing
        return [
            pipeline.answer(pixels_from_image(one.image, settings), one.prompt).text
            for one in questions
        ]


def data_url(path):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


FORMS = {
    "a path": lambda path: path,
    "a str": str,
    "bytes": lambda path: path.read_bytes(),
    "an open file": lambda path: io.BytesIO(path.read_bytes()),
    "a Pillow image": Image.open,
    "an array": lambda path: np.asarray(Image.open(path).convert("RGB")),
    "a tensor": lambda path: torch.from_numpy(np.array(Image.open(path).convert("RGB"))),
    "a data URL": data_url,
    "a list": lambda path: [path],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_may_be_anything_that_a_client_takes(form, model, questions, expected):
    question = questions[0]
    assert model.ask(FORMS[form](question.image), question.prompt).text == expected[0]


def test_the_web_is_asked_only_where_it_is_allowed(model, vicuna_build):
    with pytest.raises(InputError, match="image_urls"):
        model.ask("https://example.org/a.png", "What?")
    with (
        iblip.load(vicuna_build, image_urls=iblip.ImageURLs(hosts=("other.org",))) as allowed,
        pytest.raises(InputError, match=r"other\.org"),
    ):
        allowed.ask("https://example.org/a.png", "What?")


def test_options_are_keywords_an_object_or_a_mapping(model, questions):
    image, prompt = questions[1].image, questions[1].prompt
    short = model.ask(image, prompt, max_new_tokens=2)
    assert short.completion_tokens == 2
    assert short.finish_reason == "length"
    for options in (GenerationOptions(max_new_tokens=2), {"max_new_tokens": 2}):
        assert model.ask(image, prompt, options=options).text == short.text
        both = model.ask(image, prompt, options=options, max_new_tokens=1)
        assert both.completion_tokens == 1
    assert model.ask(image, prompt, compat="lavis").score is not None  # of a beam search
    assert model.ask(image, prompt, compat="lavis", num_beams=1).score is None


def test_an_answer_streams(model, questions, expected):
    question = questions[1]
    with model.stream(question.image, question.prompt) as stream:
        pieces = list(stream)
        assert len(pieces) > 1
        assert "".join(pieces) == stream.text == stream.answer.text == expected[1]
        assert list(stream) == []
        stream.cancel()  # nothing is left to cancel
        assert stream.answer.text == expected[1]


def test_a_stream_that_is_left_is_cancelled(model, questions):
    with model.stream(questions[0].image, "Describe the image.", options=LONG) as stream:
        assert next(stream)
    for _ in range(2):
        with pytest.raises(CancelledError):
            list(stream)
    with pytest.raises(CancelledError):
        _ = stream.answer


def test_a_deadline(model, questions):
    with pytest.raises(DeadlineError):
        model.ask(questions[0].image, "Describe the image.", options=LONG, timeout=0.001)
    with pytest.raises(DeadlineError):
        model.ask(
            questions[0].image, "Describe the image.", options=LONG, timeout=Timeout(total=0.001)
        )
    with pytest.raises(OptionError, match="timeout is -1; expected more than 0 seconds"):
        model.ask(questions[0].image, "What?", timeout=-1)


def test_rows_are_mapped_in_order_with_errors_of_their_own(model, questions, expected):
    rows = [(str(one.image), one.prompt) for one in questions]
    told = []
    results = list(
        model.map(
            [
                *rows,
                ("nothing.png", "What?"),
                {"image": questions[0].image, "prompt": "?", "n": 99},
            ],
            concurrency=3,
            progress=told.append,
        )
    )
    assert [result.index for result in results] == list(range(QUESTIONS + 2))
    assert [result.text for result in results[:QUESTIONS]] == expected
    assert isinstance(results[-2].error, InputError)
    assert isinstance(results[-1].error, OptionError)
    assert (told[-1].done, told[-1].failed, told[-1].total) == (QUESTIONS + 2, 2, QUESTIONS + 2)


def test_a_row_overrides_the_options_of_all(model, questions):
    row = {"image": questions[1].image, "prompt": questions[1].prompt}
    results = list(model.map([row, {**row, "max_new_tokens": 2}], max_new_tokens=1))
    assert [result.unwrap().completion_tokens for result in results] == [1, 2]


def test_a_map_that_is_left_cancels_what_runs(model, questions):
    row = {"image": questions[0].image, "prompt": "Describe the image."}
    before = set(threading.enumerate())
    results = model.map([{**row, "max_new_tokens": 1}, *[{**row, "options": LONG}] * 8])
    assert next(results).error is None
    other = model.stream(questions[0].image, "Describe the image.", options=LONG)
    results.close()
    status = model._pipeline._engine.status()
    assert status.running + status.waiting <= 1  # but for the other
    assert len(other.answer.token_ids) == 400
    assert set(threading.enumerate()) <= before


def test_candidates_are_ranked(model, questions):
    ranking = model.rank(questions[0].image, questions[0].prompt, ["red", "3", "a cat"])
    assert {one.text for one in ranking} == {"red", "3", "a cat"}
    assert ranking[0].text == "3"
    assert sorted(ranking, key=lambda one: -one.score) == list(ranking)


def test_it_says_what_a_server_would_say(model, vicuna_build):
    assert model.contract() == ServerContract.from_manifest(iblip.Build(vicuna_build).manifest)


def test_it_works_in_a_thread_and_in_an_event_loop(vicuna_build, questions, expected):
    def ask():
        with iblip.load(vicuna_build) as model:
            return model.ask(questions[0].image, questions[0].prompt).text

    found = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()

    async def run():
        return [ask(), await asyncio.to_thread(ask)]

    assert [*found, *asyncio.run(run())] == [expected[0]] * 3


def test_a_closed_model_says_so(vicuna_build, questions):
    model = iblip.load(vicuna_build)
    stream = model.stream(questions[0].image, "Describe the image.", options=LONG)
    model.close()
    model.close()
    for _ in range(2):
        with pytest.raises(EngineError):
            list(stream)
    with pytest.raises(EngineError, match=r"this model of .* has been closed; load another"):
        model.ask(questions[0].image, "What?")
    assert repr(model) == f"<Model of {vicuna_build}, closed>"


def test_a_model_cannot_be_pickled_and_says_what_can(model):
    for copy_of in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="hand its build to the other process"):
            copy_of(model)


def test_a_notebook_shows_an_answer(model, questions):
    image, prompt = questions[1].image, questions[1].prompt
    answer = model.ask(image, prompt)
    shown = answer._repr_html_()
    assert answer.text in shown
    assert f"{answer.completion_tokens} tokens" in shown
    several = model.ask(image, prompt, n=2, num_beams=2)
    assert several.others[0].text in several._repr_html_()
    ranked = model.ask(image, prompt, candidates=["a <b>", "red"])
    assert "a &lt;b&gt;" in ranked._repr_html_()
    assert f"{ranked.ranking[0].logprob:.3f}" in ranked._repr_html_()
