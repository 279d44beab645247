"""The original's answers through a real server: the texts that the same presets give in process."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from iblip.engines.language_model.presets import preset
from iblip.lavis import load_model_and_preprocess
from iblip.serving.cli import iblip
from iblip.serving.client import AsyncClient, InputError, OptionError

CANDIDATES = ["red", "yellow", "a 7", "3", "There are two digits."]


def original(served, example, compat, call, **options):
    """The text in process, as the original's caller gets it."""
    manifest = served.manifest
    model = manifest.language_model.architecture
    found = preset(compat, family=manifest.family, language_model=model, call=call)
    made = found.with_options(options)
    answer = served.in_process(example.image, example.prompt, made)
    return [found.finished(one.text) for one in (answer, *answer.others)], answer


def samples(examples, name):
    return {"image": [e.image for e in examples], name: [e.prompt for e in examples]}


def test_lavis_generate(served, client, examples):
    examples = examples[:4]
    wanted = [original(served, example, "lavis", "generate")[0] for example in examples]
    found = client.lavis.generate(samples(examples, "prompt"))
    assert found == [text for texts in wanted for text in texts]
    assert [answer.finish_reason for answer in found.answers] == ["eos"] * 4
    several = client.lavis.generate(samples(examples[:1], "prompt"), num_captions=3)
    assert several == original(served, examples[0], "lavis", "generate", n=3)[0]


def test_lavis_predict_answers_and_predict_class(served, examples):
    examples = examples[:4]

    async def run():
        async with AsyncClient(served.url) as client:
            answers = await client.lavis.predict_answers(samples(examples, "text_input"))
            ranks = await client.lavis.predict_class(samples(examples, "prompt"), CANDIDATES)
            return answers, ranks

    answers, ranks = asyncio.run(run())
    for example, text, rank in zip(examples, answers, ranks, strict=True):
        assert [text] == original(served, example, "lavis", "predict_answers")[0]
        options = {"candidates": CANDIDATES}
        _, wanted = original(served, example, "lavis", "predict_class", **options)
        assert rank == [one.index for one in wanted.ranking]


def test_the_client_and_the_command_answer_as_an_original(served, client, examples):
    example = examples[1]
    for compat in ("lavis", "hf"):
        (wanted,), _ = original(served, example, compat, "generate")
        assert client.ask(example.image, example.prompt, compat=compat).text == wanted
        command = ["ask", str(example.image), example.prompt, "--compat", compat]
        done = CliRunner().invoke(iblip, [*command, "--url", served.url, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["text"] == wanted
    echoes = not served.manifest.language_model.is_encoder_decoder
    assert client.ask(example.image, "Red?", compat="hf").text.startswith("Red?") is echoes


def test_options_override_the_original(served, client, examples):
    example = examples[0]
    answer = client.ask(
        example.image, example.prompt, compat="lavis", options={"num_beams": 1, "max_length": 60}
    )
    (wanted,), _ = original(served, example, "lavis", "generate", num_beams=1, max_length=60)
    assert answer.text == wanted
    assert answer.score is None  # of no beam search


def test_what_the_server_cannot_do_is_said(served, client, examples):
    example = examples[0]
    one = samples([example], "prompt")
    slots = served.manifest.limits.slots
    with pytest.raises(OptionError, match=f"num_beams is {slots + 1}; this engine has {slots} slo"):
        client.lavis.generate(one, num_beams=slots + 1)
    with pytest.raises(
        OptionError, match="compat is 'llava'; expected one of 'lavis', 'hf', 'minig"
    ):
        client.ask(example.image, example.prompt, compat="llava")
    with pytest.raises(OptionError, match="no answer for instructblip on"):
        client.ask(example.image, example.prompt, compat="minigpt4")
    with pytest.raises(OptionError, match=r"candidates has .long long .*at most .* fit"):
        client.lavis.predict_class(one, ["a cat", "long " * 3000])
    with pytest.raises(InputError, match="the prompt is empty"):
        client.lavis.generate({"image": example.image})
    if not served.manifest.language_model.is_encoder_decoder:
        with pytest.raises(OptionError, match="max_length is 9; image and prompt take"):
            client.ask(example.image, example.prompt, compat="hf", options={"max_length": 9})


LAVIS_NAMES = {
    "llama": {"name": "blip2_vicuna_instruct", "model_type": "vicuna7b"},
    "t5": {"name": "blip2_t5_instruct", "model_type": "flant5xl"},
}


def test_lavis_example_runs_against_a_server(served, client, examples):
    """LAVIS's entry point with `url=`; the texts are those of the client's own calls."""
    names = LAVIS_NAMES[served.manifest.language_model.architecture]
    model, vis_processors, _ = load_model_and_preprocess(
        **names, is_eval=True, device="cpu", url=served.url
    )
    examples = examples[:2]
    pictures = [Image.open(example.image).convert("RGB") for example in examples]
    image = vis_processors["eval"](pictures[0]).unsqueeze(0).to("cpu")
    batch = torch.stack([vis_processors["eval"](picture) for picture in pictures])
    with model:
        one = model.generate({"image": image, "prompt": examples[0].prompt})
        answers = model.predict_answers(
            {"image": batch, "text_input": [example.prompt for example in examples]}
        )
        ranks = model.predict_class({"image": batch, "prompt": "What is it?"}, CANDIDATES)
    assert one == client.lavis.generate(samples(examples[:1], "prompt"))
    assert answers == client.lavis.predict_answers(samples(examples, "text_input"))
    paths = [example.image for example in examples]
    assert ranks == client.lavis.predict_class(
        {"image": paths, "prompt": "What is it?"}, CANDIDATES
    )
    other = {"name": "blip2_opt", "model_type": "pretrain_opt2.7b"}
    with pytest.raises(OptionError, match=r"is blip2 on opt, and the server at .* has instructbl"):
        load_model_and_preprocess(**other, url=served.url)
    with load_model_and_preprocess(**names, client=client)[0] as model:
        assert model.generate({"image": image, "prompt": examples[0].prompt}) == one
    assert client.contract()  # it was given, so it is not closed
