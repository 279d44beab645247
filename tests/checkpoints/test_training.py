"""What the demo models are made of: prompts, projectors, heads, parts taken over, whole builds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
transformers = pytest.importorskip("transformers", reason="needs the export extra")
pytest.importorskip("sklearn", reason="the digits come from scikit-learn (extra: dev)")

from checkpoints.training.architecture import (  # noqa: E402
    QFORMER_WIDTH,
    plain_qformer_config,
    plain_vision_config,
)
from checkpoints.training.batches import IGNORED, Encoder  # noqa: E402
from checkpoints.training.build import BuildOptions, build  # noqa: E402
from checkpoints.training.heads import facts_at, listed_places  # noqa: E402
from checkpoints.training.language import answers as answers_of  # noqa: E402
from checkpoints.training.minigpt4 import MiniGPT4, cut  # noqa: E402
from checkpoints.training.parts import take_parts  # noqa: E402
from checkpoints.training.pools import NOTHING, PoolSpec  # noqa: E402
from checkpoints.training.projectors import merged_patches  # noqa: E402
from checkpoints.training.prompts import FORMS, Form  # noqa: E402
from checkpoints.training.questions import Question, ask  # noqa: E402
from checkpoints.training.scenes import PLACES, Digit, Scene  # noqa: E402

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
VICUNA = CHECKPOINTS / "instructblip-demo-vicuna"


@pytest.fixture(scope="module")
def llama() -> Any:
    return transformers.AutoTokenizer.from_pretrained(VICUNA)


def test_a_template_needs_its_two_places() -> None:
    with pytest.raises(ValueError, match="needs one"):
        Form(template="{prompt}")


def test_blip2_puts_questions_between_its_words_and_leaves_descriptions() -> None:
    form = FORMS["blip2-t5"]
    question = Question("place", "Where is the 3?", "centre", "centre")
    assert form.put(question).prompt == "Question: Where is the 3? Answer:"
    description = Question("detail", "Describe the image in detail.", "…", "")
    assert form.put(description) == description


def test_only_the_first_piece_begins_with_bos(llama: Any) -> None:
    encoder = Encoder(llama, llama, decoder_only=True, form=FORMS["minigpt4"])
    text = encoder.text(["Where is the 3?"], ["centre"])
    assert text.before[0] == llama.bos_token_id
    assert llama.decode(text.before[1:]) == "###Human: <Img>"
    assert llama.bos_token_id not in text.ids
    assert llama.decode(text.ids[0]) == "</Img> Where is the 3? ###Assistant:  centre###"
    answer = text.labels[0][text.labels[0] != IGNORED]
    assert llama.decode(answer) == "centre###"


def test_without_text_before_the_image_bos_follows_it(llama: Any) -> None:
    text = Encoder(llama, llama, decoder_only=True).text(["Where is the 3?"], ["centre"])
    assert len(text.before) == 0
    assert text.ids[0, 0] == llama.bos_token_id
    assert text.ids[0, -1] == llama.eos_token_id


def test_an_answer_on_opt_is_a_line() -> None:
    opt = transformers.AutoTokenizer.from_pretrained(CHECKPOINTS / "blip2-demo-opt")
    encoder = Encoder(opt, opt, decoder_only=True, form=FORMS["blip2-opt"])
    text = encoder.text(["Question: Where is the 3? Answer:"], ["centre"])
    assert opt.decode(text.ids[0]) == "</s>Question: Where is the 3? Answer: centre\n"


def test_the_list_head_is_told_digits_in_reading_order() -> None:
    labels = torch.full((2, 9, 3), NOTHING)
    labels[0, 4], labels[0, 1] = torch.tensor([7, 2, 1]), torch.tensor([3, 0, 0])
    labels[1, 8] = torch.tensor([0, 5, 1])
    places = listed_places(labels)
    assert places.tolist() == [[1, 4, 9], [8, 9, 9]]
    value, colour, size, place = facts_at(labels, places)
    assert value.tolist() == [[3, 7, 10], [0, 10, 10]]
    assert colour.tolist() == [[0, 2, 7], [5, 7, 7]]
    assert size.tolist() == [[0, 1, 2], [1, 2, 2]]
    assert torch.equal(place, places)


@pytest.mark.parametrize("kind", ["colour", "digit_at", "digit_of_colour", "exists", "larger"])
def test_a_question_knows_where_its_digit_is(kind: str) -> None:
    digits = (Digit(3, "red", "small", 2, 0), Digit(8, "blue", "large", 7, 0))
    scene = Scene(digits, "dark", "flat", (72, 72))
    for seed in range(20):
        question = ask(kind, scene, np.random.default_rng(seed))
        assert question is not None
        assert question.about is not None
        if question.about == "":
            assert question.short == "no"
            continue
        digit = next(digit for digit in digits if PLACES[digit.place] == question.about)
        facts = {str(digit.value), digit.colour, PLACES[digit.place], "yes"}
        assert question.short in facts
        named = [value for value in ("3", "8", "red", "blue") if value in question.prompt]
        assert set(named) <= facts


def test_answers_are_cut_at_the_first_stop_string() -> None:
    assert cut("a 3### and more###", ["###"]) == "a 3"
    assert cut("a 3", []) == "a 3"


def test_merging_drops_the_class_token_and_puts_four_patches_side_by_side() -> None:
    embeds = torch.arange(37.0)[None, :, None].expand(2, 37, 3)  # every patch is its own number
    merged = merged_patches(embeds)
    assert merged.shape == (2, 9, 12)
    assert merged[1, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert merged[1, 8, ::3].tolist() == [33, 34, 35, 36]


def test_a_row_is_read_as_it_is_alone(llama: Any) -> None:
    """Though no mask tells of the padding on its right."""
    whole = transformers.InstructBlipForConditionalGeneration
    model = whole.from_pretrained(VICUNA, dtype=torch.float32).language_model
    encoder = Encoder(llama, llama, decoder_only=True, form=FORMS["minigpt4"])
    prompts, answers = ["Where is the 3?", "Describe the image in detail."], ["centre", "a red 3"]
    visual = torch.randn(2, 8, 128)
    with torch.no_grad():
        together = answers_of(model, encoder.text(prompts, answers), visual)
        alone = answers_of(model, encoder.text(prompts[:1], answers[:1]), visual[:1])
    torch.testing.assert_close(together.logits[together.rows == 0], alone.logits)
    torch.testing.assert_close(together.first[:1], alone.first)


class Parts(torch.nn.Module):  # type: ignore[misc]
    """As much of a BLIP-2 as parts are taken for."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = transformers.Blip2VisionModel(plain_vision_config())
        self.qformer = transformers.Blip2QFormerModel(plain_qformer_config())
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, 8, QFORMER_WIDTH))


@torch.no_grad()
def test_a_qformer_taken_over_looks_at_images_as_before() -> None:
    source = transformers.InstructBlipForConditionalGeneration.from_pretrained(
        VICUNA, dtype=torch.float32
    ).train(False)
    model = Parts().train(False)
    take_parts(model, {"vision_model": VICUNA, "qformer": VICUNA})
    pixels = torch.randn(2, 3, 72, 72)
    seen, before = (m.vision_model(pixel_values=pixels)[0] for m in (model, source))
    torch.testing.assert_close(seen, before)
    queries = model.query_tokens.expand(2, -1, -1)
    own = model.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
    theirs = source.qformer(
        input_ids=torch.empty(2, 0, dtype=torch.int64),
        attention_mask=torch.ones(2, 8, dtype=torch.int64),
        query_embeds=source.query_tokens.expand(2, -1, -1),
        encoder_hidden_states=seen,
    )[0]
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


TRIAL = BuildOptions(
    pool=PoolSpec("train", 1000), validation=PoolSpec("validation", 1000), shorten=1e6
)


@pytest.fixture(scope="module")
def trial_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pools of images, which all recipes share."""
    return tmp_path_factory.mktemp("training") / "cache"


@pytest.mark.parametrize("name", ["blip2-flant5", "minigpt4-llama2"])
def test_a_trial_build_writes_what_the_recipe_s_checkpoint_has(
    name: str, tmp_path: Path, trial_cache: Path
) -> None:
    from checkpoints.training.recipes import RECIPES

    build(name, tmp_path / "out", trial_cache, TRIAL)
    written = tmp_path / "out" / RECIPES[name].directory
    committed = CHECKPOINTS / RECIPES[name].directory
    files = {path.name for path in committed.iterdir()} - {"README.md", "examples"}
    assert {path.name for path in written.iterdir()} == files
    for file in files - {path.name for path in committed.glob("*.safetensors")}:
        new, old = (json.loads((path / file).read_text()) for path in (written, committed))
        assert new == old
    assert not list(written.parent.glob(".*"))


def test_a_recipe_s_trial_is_never_longer() -> None:
    with pytest.raises(ValueError, match="shorten is 0"):
        replace(TRIAL, shorten=0)
    with pytest.raises(ValueError, match="until is 'lunch'"):
        replace(TRIAL, until="lunch")


def test_minigpt4_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    model = MiniGPT4.load(CHECKPOINTS / "minigpt4-demo")
    model.save(tmp_path, torch.float16)
    for file in ("config.json", "model.safetensors"):
        committed = (CHECKPOINTS / "minigpt4-demo" / file).read_bytes()
        assert (tmp_path / file).read_bytes() == committed
