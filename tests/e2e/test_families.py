"""Every demo checkpoint behind a real server: a family each, and a language model of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from checkpoints import DEMOS
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.serving.client import Client, GenerationOptions, InputError
from tests.cases import FAMILIES
from tests.fixtures.serving import Served, served_build

SHORT = GenerationOptions(max_new_tokens=24)


@dataclass(frozen=True)
class Demo:
    """A demo behind its server, the same build in this process, and questions for it."""

    manifest: Manifest
    client: Client
    pipeline: Pipeline
    examples: list[Example]

    def pixels(self, *images: Path) -> np.ndarray:
        return np.stack([pixels_from_image(path, self.manifest.preprocessing) for path in images])


@pytest.fixture(scope="module", params=DEMOS)
def demo(
    request: pytest.FixtureRequest,
    demo_build: Callable[[str], Path],
    served_demo: Callable[[str], Served],
) -> Iterator[Demo]:
    name = request.param
    shared = name.removeprefix("instructblip-demo-") in FAMILIES
    with (
        nullcontext(served_demo(name)) if shared else served_build(demo_build(name)) as served,
        Client(served.url) as client,
    ):
        examples = read_examples(DEMO.parent / name / "examples", 6)
        yield Demo(served.manifest, client, served.pipeline, examples)


def test_its_answers_are_right_and_those_of_the_same_build_in_process(demo):
    right = 0
    for example in demo.examples:
        found = demo.client.ask(example.image, example.prompt)
        wanted = demo.pipeline.answer(demo.pixels(example.image), example.prompt)
        assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)
        assert found.finish_reason == wanted.finish_reason != "length"
        right += example.is_right(found.text)
    assert right >= len(demo.examples) - 2


def test_its_answer_streams(demo):
    image, prompt = demo.examples[0].image, "Describe the image."
    with demo.client.stream(image, prompt) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text
    assert stream.answer.text == demo.client.ask(image, prompt).text


def test_several_images_go_where_its_family_has_them(demo):
    first, second = (example.image for example in demo.examples[:2])
    prompt = demo.examples[0].prompt
    most = demo.client.contract().limits.images
    one = demo.client.ask(first, prompt, options=SHORT)
    if demo.manifest.text.images == "one":
        assert most == 1
        with pytest.raises(InputError, match=r"the request has 2 images; expected 1\."):
            demo.client.ask([first, second], prompt)
        return
    asked = [prompt]
    if demo.manifest.text.images == "places":
        asked.append(f"<Img><ImageHere></Img> and <Img><ImageHere></Img> {prompt}")
    for words in asked:
        wanted = demo.pipeline.answer(demo.pixels(first, second), words, SHORT)
        for images in ([first, second], demo.pixels(first, second)):
            found = demo.client.ask(images, words, options=SHORT)
            assert (found.text, found.token_ids) == (wanted.text, wanted.token_ids)
            assert found.prompt_tokens == wanted.prompt_tokens
        more = demo.manifest.language_model.num_query_tokens
        assert wanted.prompt_tokens >= one.prompt_tokens + more
    with pytest.raises(
        InputError, match=rf"the request has {most + 1} images; expected 1 to {most}"
    ):
        demo.client.ask([first] * (most + 1), prompt)
