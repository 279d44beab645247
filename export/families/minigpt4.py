"""MiniGPT-4 (Zhu et al. 2023, arXiv 2304.10592), on LLaMA: Vicuna, and LLaMA-2 without a Q-Former.

MiniGPT-v2 (Chen et al. 2023, arXiv 2310.09478) has the modules of the latter, and looks at larger
images. A word in front of a question says what is asked for: `[vqa]`, `[caption]`, `[grounding]`,
`[refer]`, `[detection]`, `[identify]`. These are text, like the coordinates in its answers.

transformers has no class for it, so its Hugging Face form is this project's own. `config.json`:

    {
      "architectures": ["MiniGPT4ForConditionalGeneration"], "model_type": "minigpt4",
      "vision_config": {…as Blip2VisionConfig},
      "qformer_config": {…as Blip2QFormerConfig}, or null where patches are merged,
      "text_config": {"model_type": "llama", …},
      "num_query_tokens": rows of a visual prompt,
      "merged_patches": null, or how many neighbouring patches make one of its rows: 4,
      "prompt_template": "…{image}…{prompt}…",
      "stop": ["###"], or []
    }

Its tensors are called as BLIP-2's are. Where patches are merged there are no `qformer.*` and no
`query_tokens`, and `language_projection` is `[d_llm, merged_patches · d_vision]`. Beside it lie the
files of the LLaMA tokenizer, `preprocessor_config.json` and `generation_config.json`.

Sources: Vision-CAIR/MiniGPT-4, `minigpt4/models/minigpt4.py` (`encode_img`),
`minigpt4/models/minigpt_v2.py`, `minigpt4/conversation/conversation.py` (prompts,
`Chat.answer_prepare`), `demo.py` (`###` ends an answer), and in `eval_configs`
`minigpt4_eval.yaml`, `minigpt4_llama2_eval.yaml` and `minigptv2_eval.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.families.family import Family

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I"
    " provide it to you. Please answer my questions."
)
"""Beginning of every conversation (`CONV_VISION_Vicuna0`, `CONV_VISION_LLama2`)."""

VICUNA_TEMPLATE = f"{SYSTEM}###Human: <Img>{{image}}</Img> {{prompt}}###Assistant: "
"""Prompt of a first question on Vicuna; in training it lacked the system's part."""

LLAMA2_TEMPLATE = f"{SYSTEM}<s>[INST] <Img>{{image}}</Img> {{prompt}} [/INST] "
"""The same on LLaMA-2."""

MINIGPT_V2_TEMPLATE = "<s>[INST] <Img>{image}</Img> {prompt} [/INST]"
"""The same to MiniGPT-v2, which has no system's part (`CONV_VISION_minigptv2`)."""

VICUNA_STOP = ("###",)
"""End of an answer in Vicuna's training (`end_sym`); LLaMA-2 has the tokenizer's `</s>`."""


@dataclass(kw_only=True)
class MiniGPT4Config:
    """A MiniGPT-4's config, with the attributes that transformers' `Blip2Config` has.

    Attributes:
        vision_config: a `Blip2VisionConfig`.
        qformer_config: a `Blip2QFormerConfig`, or `None` where patches are merged.
        text_config: of the language model.
        num_query_tokens: rows of a visual prompt.
        merged_patches: number of neighbouring patches in a row of the visual prompt, or `None`.
        prompt_template: with `{image}` and `{prompt}`.
        stop: strings that end an answer.
    """

    vision_config: Any
    qformer_config: Any
    text_config: Any
    num_query_tokens: int
    merged_patches: int | None = None
    prompt_template: str = VICUNA_TEMPLATE
    stop: tuple[str, ...] = VICUNA_STOP

    def __post_init__(self) -> None:
        if (self.qformer_config is None) == (self.merged_patches is None):
            raise CheckpointError(
                "a MiniGPT-4 has either a qformer_config or merged_patches; found"
                f" qformer_config {'null' if self.qformer_config is None else 'given'} and"
                f" merged_patches {self.merged_patches}"
            )
        for place in ("{image}", "{prompt}"):
            if self.prompt_template.count(place) != 1:
                raise CheckpointError(
                    f"prompt_template is {self.prompt_template!r}; expected {place} in it, once"
                )
        if self.merged_patches is not None:
            self._check_merge(self.merged_patches)

    def _check_merge(self, merged: int) -> None:
        vision = self.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        if merged < 1 or patches % merged:
            raise CheckpointError(
                f"an image has {patches} patches, and merged_patches is {merged}, which does not"
                " divide them"
            )
        if self.num_query_tokens != patches // merged:
            raise CheckpointError(
                f"num_query_tokens is {self.num_query_tokens}, but the image's patches merge into"
                f" {patches // merged} rows. Correct it, or image_size or merged_patches."
            )


def minigpt4_config(data: Mapping[str, Any]) -> MiniGPT4Config:
    """Returns the config in the content of `config.json`, as in the module's docstring.

    Raises:
        CheckpointError: a part is missing, or two parts contradict each other.
    """
    from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig

    missing = {"vision_config", "qformer_config", "text_config", "num_query_tokens"} - data.keys()
    if missing:
        raise CheckpointError(f"config.json has no {', '.join(sorted(missing))}")
    text, qformer = dict(data["text_config"]), data["qformer_config"]
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(**data["vision_config"]),
        qformer_config=None if qformer is None else Blip2QFormerConfig(**qformer),
        text_config=AutoConfig.for_model(text.pop("model_type", "llama"), **text),
        num_query_tokens=data["num_query_tokens"],
        merged_patches=data.get("merged_patches"),
        prompt_template=data.get("prompt_template", MINIGPT4.prompt_template),
        stop=tuple(data.get("stop", MINIGPT4.stop)),
    )


def _read_config(directory: Path) -> MiniGPT4Config:
    path = directory / "config.json"
    try:
        return minigpt4_config(json.loads(path.read_text(encoding="utf-8")))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


MINIGPT4 = Family(
    name="minigpt4",
    architecture="MiniGPT4ForConditionalGeneration",
    processor=None,
    config=_read_config,
    projector="qformer",
    images="places",
    prompt_template=VICUNA_TEMPLATE,
    stop=VICUNA_STOP,
    marks_image=False,
    ends_as_configured=False,
    max_new_tokens=300,  # conversation.py, `Chat.answer_prepare`
)
