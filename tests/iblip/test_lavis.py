"""LAVIS's entry point: its own example, with torch and without, over a build in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iblip
from iblip import BuildDirectoryError, InputError, OptionError
from iblip.export.artifact.manifest import Preprocessing
from iblip.export.images import pixels_from_image
from iblip.lavis import ImageProcessor, TextProcessor, load_model_and_preprocess
from iblip.serving.wire.contract import Limits, ServedBuild, ServerContract
from iblip.tensors import Array, pixels_from_tensor, tensor_from_pixels

NAMES = {
    "instructblip-demo-vicuna": ("blip2_vicuna_instruct", "vicuna7b"),
    "instructblip-demo-flant5": ("blip2_t5_instruct", "flant5xl"),
}
REPOSITORY = Path(iblip.__file__).resolve().parents[1]


def contract(width=12, height=8):
    return ServerContract(
        preprocessing=Preprocessing(height=height, width=width, resample="BICUBIC"),
        limits=Limits(**dict.fromkeys(Limits.__dataclass_fields__, 8)),
        build=ServedBuild(
            name="small", family="instructblip", language_model="llama", precision={}, created=""
        ),
    )


class TestTensors:
    LEVELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    def test_an_image_is_normalised_as_torchvision_would(self):
        """Bit for bit: `ToTensor`, then `Normalize`, with LAVIS's mean and standard deviation."""
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        expected = (
            torch.from_numpy(self.LEVELS).permute(2, 0, 1).float().div(255).sub(mean).div(std)
        )
        tensor = tensor_from_pixels(self.LEVELS)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_every_level_comes_back(self, dtype):
        batch = torch.stack([tensor_from_pixels(self.LEVELS)] * 2).to(dtype)
        pixels = pixels_from_tensor(batch, (16, 16))
        assert len(pixels) == 2
        assert all(np.array_equal(one, self.LEVELS) for one in pixels)
        assert all(one.flags["C_CONTIGUOUS"] for one in pixels)

    def test_videos_are_frames_in_order(self):
        frames = [np.full((4, 6, 3), level, np.uint8) for level in (0, 128, 255)]
        video = torch.stack([tensor_from_pixels(frame) for frame in frames], dim=1)
        (pixels,) = pixels_from_tensor(video[None], (4, 6))  # [1, 3, frames, 4, 6]
        assert np.array_equal(pixels, np.stack(frames))

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.zeros(1, 3, 4, 5), r"shape \[1, 3, 4, 5\]; expected \[batch, 3, 4, 6\]"),
            (torch.zeros(1, 4, 6, 3), r"shape \[1, 4, 6, 3\]"),
            (torch.zeros(4, 6), r"shape \[4, 6\]"),
            (torch.full((1, 3, 4, 6), 9.0), "values from 9 to 9; expected what vis_processors"),
            (torch.full((1, 3, 4, 6), torch.nan), "values from nan"),
        ],
    )
    def test_what_is_no_normalised_image_is_refused(self, tensor, message):
        with pytest.raises(InputError, match=message):
            pixels_from_tensor(tensor, (4, 6))

    def test_without_torch_there_is_an_array_like_a_tensor(self):
        array = np.zeros((3, 4, 6), np.float32).view(Array)
        batch = array.unsqueeze(0).to("cuda:0", non_blocking=True).cuda().cpu().half()
        assert isinstance(batch, Array)
        assert (batch.shape, batch.dim(), batch.dtype) == ((1, 3, 4, 6), 4, np.float16)
        assert array.unsqueeze(-1).shape == (3, 4, 6, 1)
        assert isinstance(batch.float(), Array)


class TestProcessors:
    def test_a_picture_is_resized_as_pillow_does_and_not_turned(self, tmp_path):
        random = np.random.default_rng(0)
        picture = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees, which LAVIS does not do
        picture.save(tmp_path / "turned.png", exif=exif)
        loaded = Image.open(tmp_path / "turned.png").convert("RGB")
        resized = np.asarray(picture.resize((12, 8), Image.Resampling.BICUBIC))
        process = ImageProcessor(contract())
        assert torch.equal(process(loaded), tensor_from_pixels(resized))
        # A path is for the client, which turns pictures as they are meant to be seen.
        path = tmp_path / "turned.png"
        turned = pixels_from_image(path, contract().preprocessing)
        assert torch.equal(process(path), tensor_from_pixels(turned))
        assert not np.array_equal(turned, resized)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("What's THIS?", "what's this?"),
            ('A "cat" (or:a dog)...  ~ #1!', "a cat or a dog 1"),
            (" two\n\nlines\n", "two lines"),
            ("word " * 60, " ".join(["word"] * 50)),
            ("", ""),
        ],
    )
    def test_a_text_is_processed_as_a_caption(self, text, expected):
        assert TextProcessor()(text) == expected


@pytest.fixture(scope="module", params=NAMES)
def demo(request, demo_build):
    """A build that stands for a model of LAVIS's, and that model, loaded by LAVIS's name."""
    name, model_type = NAMES[request.param]
    build = demo_build(request.param)
    model, vision, text = load_model_and_preprocess(
        name=name, model_type=model_type, is_eval=True, device="cpu", build=build
    )
    with model:
        yield build, model, vision, text


def test_lavis_own_example_runs(demo, examples):
    """As in the README of its InstructBLIP project; the answers are those of the client's calls."""
    build, model, vis_processors, txt_processors = demo
    device = torch.device("cuda") if torch.cuda.is_available() else "cpu"
    assert vis_processors.keys() == txt_processors.keys() == {"eval"}
    example = examples[1]
    raw_image = Image.open(example.image).convert("RGB")
    image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
    assert isinstance(image, torch.Tensor)
    with iblip.load(build) as reference:
        expected = reference.lavis.generate({"image": example.image, "prompt": example.prompt})
    found = model.generate({"image": image, "prompt": example.prompt})
    assert found == expected
    assert found.answers[0].token_ids == expected.answers[0].token_ids
    assert model.to(device).eval().generate(
        {"image": image.half(), "prompt": example.prompt}
    ) == list(expected)
    sampled = model.generate(
        {"image": image, "prompt": example.prompt},
        use_nucleus_sampling=True, num_beams=1, top_p=0.9, temperature=1,
    )  # fmt: skip
    assert len(sampled) == 1


def test_batches_of_every_call(demo, examples):
    build, model, vis_processors, _ = demo
    examples = examples[:3]
    pictures = [Image.open(example.image).convert("RGB") for example in examples]
    batch = torch.stack([vis_processors["eval"](picture) for picture in pictures])
    paths = [example.image for example in examples]
    prompts = [example.prompt for example in examples]
    candidates = ["red", "3", "a purple 9"]
    with iblip.load(build) as reference:
        lavis = reference.lavis
        texts = lavis.generate({"image": paths, "prompt": prompts}, num_captions=2)
        answers = lavis.predict_answers({"image": paths, "text_input": prompts})
        ranks = lavis.predict_class({"image": paths, "prompt": prompts}, candidates)
    assert model.generate({"image": batch, "prompt": prompts}, num_captions=2) == texts
    assert model.predict_answers({"image": batch, "text_input": prompts}) == answers
    assert model.predict_class({"image": batch, "prompt": prompts}, candidates) == ranks
    # One prompt for all, a list of tensors, and what only the client takes.
    same = model.generate({"image": batch, "prompt": prompts[0]}, num_beams=1)
    assert model.generate({"image": list(batch), "prompt": prompts[0]}, num_beams=1) == same
    assert model.generate({"image": paths, "prompt": prompts[0]}, num_beams=1) == same


def test_a_video_is_one_question_about_its_frames(demo, examples):
    build, model, vis_processors, _ = demo
    paths = [example.image for example in examples[:2]]
    frames = [vis_processors["eval"](Image.open(path).convert("RGB")) for path in paths]
    video = torch.stack(frames, dim=1).unsqueeze(0)  # [1, 3, frames, height, width]
    samples = {"image": video, "prompt": examples[0].prompt}
    with iblip.load(build) as reference:
        size = reference.contract().preprocessing
        pixels = np.stack([pixels_from_image(path, size) for path in paths])
        expected = reference.ask(pixels, examples[0].prompt, compat="lavis").text
    assert model.generate(samples) == [expected]


WITHOUT_TORCH = """\
import json, sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nowhere())
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: (
    None if name == "torch" else find(name)
)
from PIL import Image
from iblip.lavis import load_model_and_preprocess

build, path, prompt = sys.argv[1:]
model, vis_processors, _ = load_model_and_preprocess(
    name="blip2_vicuna_instruct", model_type="vicuna7b", is_eval=True, device="cpu", build=build
)
image = vis_processors["eval"](Image.open(path).convert("RGB")).unsqueeze(0).to("cpu")
texts = model.generate({"image": image, "prompt": prompt})
print(json.dumps([type(image).__name__, list(image.shape), texts, "torch" in sys.modules]))
"""


def test_the_example_runs_without_torch(vicuna_build, examples):
    example = examples[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, vicuna_build, example.image, example.prompt],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # though nobody has closed the model
    with iblip.load(vicuna_build) as model:
        expected = model.lavis.generate({"image": example.image, "prompt": example.prompt})
        size = model.contract().preprocessing
    assert json.loads(done.stdout) == ["Array", [1, 3, size.height, size.width], expected, False]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model_type": "vicuna7"}, OptionError, "Did you mean 'blip2_vicuna_instruct vicuna7b'"),
        ({"name": "blip_caption"}, OptionError, "LAVIS has no model 'blip_caption' of model_type"),
        ({"device": "tpu"}, OptionError, 'device is \'tpu\'; expected "cpu", "cuda" or "cuda:N"'),
        ({"name": "blip2_opt", "model_type": "pretrain_opt2.7b"}, OptionError,
         "pretrain_opt2.7b is blip2 on opt, and .* has instructblip-demo-vicuna, which is instru"),
        ({"build": None}, BuildDirectoryError,
         'has no build of blip2_vicuna_instruct/vicuna7b that fits. .*checkpoint="Salesforce/inst'),
        ({"build": None, "parts": {"vit": "x"}, "checkpoint": "a/b"}, OptionError,
         "parts and checkpoint are given; expected one of them"),
        ({"url": "127.0.0.1:1", "client": 1}, OptionError, "url and client are given"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused(arguments, kind, message, vicuna_build, tmp_path):
    asked = {"name": "blip2_vicuna_instruct", "model_type": "vicuna7b", "build": vicuna_build}
    with pytest.raises(kind, match=message):
        load_model_and_preprocess(**{**asked, "builds": tmp_path, **arguments})


def test_what_cannot_be_asked_is_refused(demo, examples):
    _, model, vis_processors, _ = demo
    samples = {"image": examples[0].image, "prompt": "What?"}
    with pytest.raises(
        OptionError, match=r"generate has no argument 'num_beam'\. Did you mean 'num"
    ):
        model.generate(samples, num_beam=3)
    with pytest.raises(OptionError, match="LAVIS would sample among beams"):
        model.generate(samples, use_nucleus_sampling=True)
    with pytest.raises(InputError, match="there is no processor 'train', only 'eval'"):
        vis_processors["train"]
    with pytest.raises(InputError, match="expected 'image' among them"):
        model.generate({"prompt": "What?"})
