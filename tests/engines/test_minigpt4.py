"""MiniGPT-4 and MiniGPT-v2 against their originals, written anew of transformers' modules.

`Original` reads the checkpoint's files itself and shares nothing with the project's own reference.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.source import ModelSource
from iblip.export.examples import Example, read_examples
from iblip.export.images import pixels_from_image
from iblip.export.models.table import MODELS
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions
from tests.export.originals.conftest import minigpt4_pair

Build = Callable[..., Path]
KINDS = ("minigpt4", "minigpt4-merge")
DEMOS = sorted(path.parent.name for path in DEMO.parent.glob("minigpt4-*/config.json"))
WAYS = {"greedy": 1, "five beams": 5}
BATCH = 32
MOST_TOKENS = 64
"""Of an answer: more than any right one has."""


class Ends(StoppingCriteria):
    """An answer ends with `stop`, each row by itself.

    The original's criterion (`StoppingCriteriaSub`) compares ids and wants all rows at once to end.
    It was made for one row, where the two are the same; with beams its search does not end there,
    but what it says afterwards is cut off all the same.
    """

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self._tokenizer, self._stop = tokenizer, stop

    def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
        texts = self._tokenizer.batch_decode(input_ids)
        return torch.tensor([self._stop in text for text in texts])


class Original:
    """`encode_img`, `get_context_emb` and `Chat.answer` of the original, without its sampling.

    Source: Vision-CAIR/MiniGPT-4, `minigpt4/models/minigpt4.py` and `conversation/conversation.py`.
    """

    def __init__(
        self, directory: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any
    ) -> None:
        self.config = {**json.loads((directory / "config.json").read_text()), **changes}
        tensors = tensors or load_file(directory / "model.safetensors")

        def part(module: Any, name: str) -> Any:
            own = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
            module.load_state_dict(own)
            return module.float().eval()

        self.vision = part(
            Blip2VisionModel(Blip2VisionConfig(**self.config["vision_config"])), "vision_model."
        )
        self.llama = part(
            LlamaForCausalLM(LlamaConfig(**self.config["text_config"])), "language_model."
        )
        height, width = tensors["language_projection.weight"].shape
        self.projection = part(torch.nn.Linear(width, height), "language_projection.")
        if self.config["qformer_config"] is not None:
            qformer = Blip2QFormerModel(Blip2QFormerConfig(**self.config["qformer_config"]))
            self.qformer = part(qformer, "qformer.")
            self.query_tokens = tensors["query_tokens"].float()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
        self.image_processor: Any = AutoImageProcessor.from_pretrained(directory)
        self.eos = json.loads((directory / "generation_config.json").read_text()).get(
            "eos_token_id", self.config["text_config"]["eos_token_id"]
        )

    def encode_img(self, files: Sequence[Path]) -> torch.Tensor:
        images = [Image.open(file) for file in files]
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        features = self.vision(pixel_values=pixels).last_hidden_state
        if self.config["qformer_config"] is not None:
            queries = self.query_tokens.expand(len(images), -1, -1)
            made = self.qformer(query_embeds=queries, encoder_hidden_states=features)
            return self.projection(made.last_hidden_state)
        batch, patches, width = features[:, 1:].shape
        return self.projection(features[:, 1:].reshape(batch, patches // 4, width * 4))

    def segments(self, prompt: str) -> list[list[int]]:
        filled = self.config["prompt_template"].replace("{image}", "<ImageHere>")
        texts = filled.replace("{prompt}", prompt).split("<ImageHere>")
        return [
            self.tokenizer(text, add_special_tokens=index == 0).input_ids
            for index, text in enumerate(texts)
        ]

    @torch.no_grad()
    def generate(
        self, files: Sequence[Path], prompts: Sequence[str], num_beams: int, limit: int
    ) -> torch.Tensor:
        rows = [self.segments(prompt) for prompt in prompts]
        before, after = (
            self.llama.model.embed_tokens(torch.tensor([row[at] for row in rows])) for at in (0, 1)
        )
        return self.go_on(
            torch.cat([before, self.encode_img(files), after], dim=1), num_beams, limit
        )

    @torch.no_grad()
    def dialogue(self, files: Sequence[Path], text: str, limit: int) -> str:
        """`Chat.answer` of a conversation: `text` is all of it, with a mark for each image."""
        parts = []
        for index, part in enumerate(text.split("<ImageHere>")):
            ids = self.tokenizer(part, add_special_tokens=index == 0).input_ids
            parts += [self.encode_img([files[index - 1]])] if index else []
            parts.append(self.llama.model.embed_tokens(torch.tensor([ids], dtype=torch.long)))
        made = self.go_on(torch.cat(parts, dim=1), 1, limit)
        said: str = self.tokenizer.decode(made[0], skip_special_tokens=True)
        for stop in self.config["stop"]:
            said = said.split(stop)[0]
        return said

    def go_on(self, embeds: torch.Tensor, num_beams: int, limit: int) -> torch.Tensor:
        criteria = [Ends(self.tokenizer, stop) for stop in self.config["stop"]]
        made: torch.Tensor = self.llama.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=limit,
            stopping_criteria=StoppingCriteriaList(criteria),
            num_beams=num_beams,
            do_sample=False,
            length_penalty=1.0,
            eos_token_id=self.eos,
            pad_token_id=self.eos,
        )
        return made

    def batch(
        self, files: Sequence[Path], prompts: Sequence[str], num_beams: int, limit: int
    ) -> list[str]:
        made = self.generate(files, prompts, num_beams, limit)
        texts: list[str] = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        for stop in self.config["stop"]:
            texts = [text.split(stop)[0] for text in texts]
        return texts

    def answers(self, examples: Sequence[Example], num_beams: int, limit: int) -> list[str]:
        """Prompts of one length go together: padding would change the answers."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            groups[tuple(map(len, self.segments(example.prompt)))].append(index)
        texts: dict[int, str] = {}
        for group in groups.values():
            for start in range(0, len(group), BATCH):
                some = group[start : start + BATCH]
                files, prompts = zip(
                    *((examples[i].image, examples[i].prompt) for i in some), strict=True
                )
                texts.update(zip(some, self.batch(files, prompts, num_beams, limit), strict=True))
        return [texts[index] for index in range(len(examples))]


class OriginalV2(Original):
    """`MiniGPTv2`: larger images, LoRA beside the weights that it changes, its own conversation.

    Source: Vision-CAIR/MiniGPT-4, `minigpt4/models/minigpt_v2.py`, `eva_vit.py`
    (`interpolate_pos_embed`), `demo_v2.py`; Hu et al. 2021, LoRA, section 4.1.

    Args:
        directory: of the model without LoRA, for smaller images.
        lora: its matrices, by the names that peft gives them in the original's file.
        side: height and width of the images, in pixels.
        tokenizer: `tokenizer.json`, as the original's version of transformers reads prompts.
    """

    def __init__(
        self, directory: Path, lora: dict[str, torch.Tensor], side: int, tokenizer: Path
    ) -> None:
        tensors = load_file(directory / "model.safetensors")
        vision = json.loads((directory / "config.json").read_text())["vision_config"]
        name, patches = "vision_model.embeddings.position_embedding", side // vision["patch_size"]
        first, rest = tensors[name][:, :1], tensors[name][:, 1:]
        own = int(rest.shape[1] ** 0.5)
        grid = rest.reshape(1, own, own, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(patches, patches), mode="bicubic")
        tensors[name] = torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
        super().__init__(directory, tensors, vision_config={**vision, "image_size": side}, stop=[])
        self.image_processor.size = {"height": side, "width": side}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        for path, down in lora.items():
            if "lora_A" not in path:
                continue
            up = lora[path.replace("lora_A", "lora_B")]
            layer = path.split(".lora_A")[0].removeprefix("llama_model.base_model.model.")
            self.llama.get_submodule(layer).register_forward_hook(self._low_rank(down, up))

    @staticmethod
    def _low_rank(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
        scale = 16 / len(down)  # lora_alpha of `minigptv2_eval.yaml`
        return lambda _, given, found: found + scale * given[0] @ down.T @ up.T

    def segments(self, prompt: str) -> list[list[int]]:
        roles = "<s>[INST] ", " [/INST]"
        texts = f"{roles[0]}<Img><ImageHere></Img> {prompt}{roles[1]}".split("<ImageHere>")
        return [
            self.tokenizer(text, add_special_tokens=index == 0).input_ids
            for index, text in enumerate(texts)
        ]


def said(
    build: Path, manifest: Manifest, examples: Sequence[Example], num_beams: int, limit: int
) -> list[str]:
    options = GenerationOptions(num_beams=num_beams, max_new_tokens=limit)
    with Pipeline(build, threads=1, manifest=manifest) as pipeline:
        return [
            pipeline.answer(
                pixels_from_image(e.image, manifest.preprocessing), e.prompt, options
            ).text
            for e in examples
        ]


@pytest.mark.parametrize("num_beams", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_says_what_the_original_does(
    checkpoints: Path,
    demo_build: Callable[[str], Path],
    pytestconfig: pytest.Config,
    name: str,
    num_beams: int,
) -> None:
    limit = None if pytestconfig.getoption("every_example") else 24
    examples, build = read_examples(checkpoints / name / "examples", limit), demo_build(name)
    wanted = Original(checkpoints / name).answers(examples, num_beams, MOST_TOKENS)
    found = said(build, Manifest.read(build), examples, num_beams, MOST_TOKENS)
    pairs = zip(examples, found, wanted, strict=True)
    assert [(e.name, text, said) for e, text, said in pairs if text != said] == []


@pytest.fixture
def few(checkpoints: Path) -> list[Example]:
    return read_examples(checkpoints / "heldout", 4)


@pytest.mark.parametrize("num_beams", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_say_the_same(
    random_checkpoint: Build, random_build: Build, few: list[Example], kind: str, num_beams: int
) -> None:
    build, original = random_build(kind), Original(random_checkpoint(kind))
    manifest = Manifest.read(build)
    wanted = original.answers(few, num_beams, limit=12)
    assert len(set(wanted)) > 1  # the image is looked at
    assert said(build, manifest, few, num_beams, limit=12) == wanted


@pytest.mark.parametrize("num_beams", WAYS.values(), ids=WAYS)
def test_a_stop_string_ends_an_answer_where_it_does_there(
    random_checkpoint: Build, random_build: Build, few: list[Example], num_beams: int
) -> None:
    """Whatever the random model says in the middle of its answers is made a stop string."""
    build = random_build("minigpt4")
    manifest = Manifest.read(build)
    whole = said(build, manifest, few, num_beams, limit=12)
    stop = (whole[0][3:5], whole[1][4:7])
    assert all(stop)
    original = Original(random_checkpoint("minigpt4"), stop=list(stop))
    wanted = original.answers(few, num_beams, limit=12)
    manifest = replace(manifest, text=replace(manifest.text, stop=stop))
    assert said(build, manifest, few, num_beams, limit=12) == wanted != whole


LORA = "llama_model.base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.default.weight"


def test_minigpt_v2_says_what_its_original_does(
    random_checkpoint: Build, few: list[Example], tmp_path: Path
) -> None:
    """From files like the released ones, which do not say the alpha of their LoRA."""
    torch.manual_seed(2)
    lora = {
        LORA.format(layer, name, matrix): torch.randn(shape) / 4
        for layer in range(2)
        for name, outputs in (("q", 32), ("v", 16))
        for matrix, shape in (("A", (4, 32)), ("B", (outputs, 4)))
    }
    pair = minigpt4_pair(random_checkpoint("minigpt4-merge"), tmp_path)
    projection = torch.load(pair.parts["projection"])["model"]
    torch.save({"model": {**projection, **lora}}, pair.parts["projection"])
    row = MODELS["minigpt-v2"]
    config = pair.config
    config["vision_config"]["image_size"] = 96
    config |= {"num_query_tokens": 16, "prompt_template": row.prompt_template, "stop": row.stop}
    (tmp_path / "config.json").write_text(json.dumps(config))
    parts = {**pair.parts, "config": tmp_path / "config.json"}
    source = ModelSource(model="minigpt4:minigptv2", parts=parts)
    output = tmp_path / "build"
    directory = build(BuildOptions(source=source, output=output, verification=None))

    def tokens(original: Original) -> list[list[int]]:
        made = (original.generate([e.image], [f"[vqa] {e.prompt}"], 1, 12)[0] for e in few)
        return [[token for token in row.tolist() if token != original.eos] for row in made]

    tokenizer = directory / "text" / "tokenizer.json"
    wanted = tokens(OriginalV2(pair.directory, lora, 96, tokenizer))
    assert wanted[0] not in wanted[1:]
    assert tokens(OriginalV2(pair.directory, {}, 96, tokenizer)) != wanted
    with Pipeline(directory, threads=1) as pipeline:
        options = GenerationOptions(max_new_tokens=12)
        found = [pipeline.answer(e.image, f"[vqa] {e.prompt}", options).token_ids for e in few]
    assert [list(ids) for ids in found] == wanted
