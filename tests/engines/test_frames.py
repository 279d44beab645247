"""Several images of one request, as the frames of a video, against transformers' video model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InstructBlipVideoConfig, InstructBlipVideoForConditionalGeneration

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.checkpoint.checkpoint import Checkpoint, checkpoint_from_directory
from iblip.export.errors import InputError

Build = Callable[..., Path]
PROMPTS = ("What colour is the 3?", "How many digits are there?")


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)


def video_model(checkpoint: Checkpoint) -> Any:
    """The same weights as transformers' InstructBlipVideo, whose frames the image token marks."""
    settings = checkpoint.config.to_dict()
    settings["video_token_index"] = settings["image_token_index"]
    config = InstructBlipVideoConfig.from_dict(settings)
    return InstructBlipVideoForConditionalGeneration.from_pretrained(
        checkpoint.directory, config=config
    ).eval()


@torch.no_grad()
def said_by(model: Any, checkpoint: Checkpoint, video: np.ndarray, prompt: str) -> str:
    """The greedy answer of transformers."""
    processor: Any = checkpoint.processor
    images = [Image.fromarray(frame) for frame in video]
    inputs = processor(images=images, text=[prompt] * len(video), return_tensors="pt")
    text = processor.tokenizer(prompt, return_tensors="pt").input_ids
    places = len(video) * checkpoint.config.num_query_tokens
    places = torch.full((1, places), checkpoint.config.image_token_index)
    ids = torch.cat([places, text], dim=1)
    answer = model.generate(
        pixel_values=inputs["pixel_values"][None],
        qformer_input_ids=inputs["qformer_input_ids"][:1],
        qformer_attention_mask=inputs["qformer_attention_mask"][:1],
        input_ids=ids,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=processor.tokenizer.eos_token_id,
    )[0]
    if not model.config.text_config.is_encoder_decoder:
        answer = answer[ids.shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_answers_about_a_video_are_those_of_transformers(
    kind: str, random_build: Build, random_checkpoint: Build
) -> None:
    checkpoint = checkpoint_from_directory(random_checkpoint(kind))
    model, options = video_model(checkpoint), GenerationOptions(max_new_tokens=12)
    said = set()
    with Pipeline(random_build(kind), threads=1) as pipeline:
        for count in (2, 3, 4):
            video = frames(count)
            for prompt in PROMPTS:
                answer = pipeline.answer(video, prompt, options)
                assert answer.text == said_by(model, checkpoint, video, prompt)
                tokens = len(checkpoint.processor.tokenizer(prompt).input_ids)
                assert answer.prompt_tokens == 4 * count + tokens
                said.add(answer.text)
        one = pipeline.answer(frames(1)[0], PROMPTS[0], options)
        assert pipeline.answer(frames(1), PROMPTS[0], options).token_ids == one.token_ids
    assert len(said) > 1  # else the test would see nothing


@pytest.mark.parametrize(("kind", "most"), [("llama", "1 to 4"), ("opt", "1")])
def test_too_many_images_are_refused(kind: str, most: str, random_build: Build) -> None:
    with Pipeline(random_build(kind), threads=1) as pipeline:
        with pytest.raises(InputError, match=rf"the request has 5 images; expected {most}\."):
            pipeline.answer(frames(5), "What?")
        with pytest.raises(InputError, match=rf"the request has 0 images; expected {most}\."):
            pipeline.answer(frames(5)[:0], "What?")


def test_a_video_that_leaves_no_room_for_the_prompt_is_refused(random_build: Build) -> None:
    with Pipeline(random_build("llama"), threads=1) as pipeline:
        prompt = "red " * 16
        assert pipeline.answer(frames(1)[0], prompt, GenerationOptions(max_new_tokens=1))
        with pytest.raises(InputError, match=r"at most 47 fit\. 4 images take the rest\."):
            pipeline.answer(frames(4), prompt)
