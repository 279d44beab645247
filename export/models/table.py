"""The models that this project is for: a row each, with names, files, geometry and their proof.

Loads nothing heavy. Names and file names are those of the originals' own configurations
(salesforce/LAVIS, lavis/configs/models/blip2/*.yaml; Vision-CAIR/MiniGPT-4, README.md and
eval_configs/*.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping

from iblip.export.families.minigpt4 import LLAMA2_TEMPLATE, MINIGPT_V2_TEMPLATE
from iblip.export.models.geometry import (
    FLAN_T5_XL,
    FLAN_T5_XXL,
    INSTRUCTION_QFORMER,
    LLAMA_2_7B,
    OPT_2_7B,
    OPT_6_7B,
    QFORMER,
    VICUNA_7B,
    VICUNA_13B,
    VIT_G,
    VIT_G_364,
    VIT_G_448,
    Config,
)
from iblip.export.models.model import Model

IMAGE_TOKENS: Mapping[str, int] = {"llama": 32001, "opt": 50265, "t5": 32100}
"""The language model's `model_type` to the id of `<image>` in the hub's tokenizers."""

VICUNA_DEMO, FLANT5_DEMO = "instructblip-demo-vicuna", "instructblip-demo-flant5"
BLIP2_OPT_DEMO, BLIP2_FLANT5_DEMO = "blip2-demo-opt", "blip2-demo-flant5"
MINIGPT4_DEMO, LLAMA2_DEMO = "minigpt4-demo", "minigpt4-demo-llama2"

VIT_FILE, BERT = "eva_vit_g.pth", "bert-base-uncased"
"""What every original takes of others: EVA's ViT, and the Q-Former's tokenizer."""


def _instructblip(size: str, text: Config, demo: str, *, lavis: str, file: str, llm: str) -> Model:
    name = f"instructblip-{size}"
    return Model(
        name=name,
        architecture="InstructBlipForConditionalGeneration",
        vision=VIT_G,
        qformer=INSTRUCTION_QFORMER,
        text=text,
        hub=f"Salesforce/{name}",
        lavis=lavis,
        files={
            "checkpoint": file,
            "vit": VIT_FILE,
            "language_model": llm,
            "qformer_tokenizer": BERT,
        },
        image_token_id=IMAGE_TOKENS[text["model_type"]],
        demo=demo,
    )


def _blip2(size: str, text: Config, demo: str, *, lavis: str, file: str, llm: str) -> Model:
    name, coco = f"blip2-{size}", size.endswith("-coco")
    return Model(
        name=name,
        architecture="Blip2ForConditionalGeneration",
        vision=VIT_G_364 if coco else VIT_G,
        qformer=QFORMER,
        text=text,
        hub=f"Salesforce/{name}",
        lavis=lavis,
        # The captioners' ViT was trained too, so their own file has it.
        files={
            "checkpoint": file,
            **({} if coco else {"vit": VIT_FILE}),
            "language_model": llm,
        },
        image_token_id=IMAGE_TOKENS[text["model_type"]],
        demo=demo,
    )


def _minigpt4(size: str, text: Config, *, minigpt4: str, file: str, llm: str) -> Model:
    return Model(
        name=f"minigpt4-{size}",
        architecture="MiniGPT4ForConditionalGeneration",
        vision=VIT_G,
        qformer=QFORMER,
        text=text,
        minigpt4=minigpt4,
        files={
            "vit": VIT_FILE,
            "qformer": "blip2_pretrained_flant5xxl.pth",
            "projection": file,
            "language_model": llm,
        },
        demo=MINIGPT4_DEMO,
    )


def _minigpt4_merging(
    name: str, vision: Config, template: str, *, minigpt4: str, file: str, lora: float | None = None
) -> Model:
    """A model without a Q-Former, on LLaMA-2: four neighbouring patches make a row."""
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return Model(
        name=name,
        architecture="MiniGPT4ForConditionalGeneration",
        vision=vision,
        qformer=None,
        text=LLAMA_2_7B,
        num_query_tokens=patches // 4,
        merged_patches=4,
        prompt_template=template,
        stop=(),
        lora_alpha=lora,
        minigpt4=minigpt4,
        files={
            "vit": VIT_FILE,
            "projection": file,
            "language_model": "meta-llama/Llama-2-7b-chat-hf",
        },
        demo=LLAMA2_DEMO,
    )


ROWS = (
    _instructblip(
        "vicuna-7b",
        VICUNA_7B,
        VICUNA_DEMO,
        lavis="blip2_vicuna_instruct/vicuna7b",
        file="instruct_blip_vicuna7b_trimmed.pth",
        llm="Vicuna 7B v1.1",
    ),
    _instructblip(
        "vicuna-13b",
        VICUNA_13B,
        VICUNA_DEMO,
        lavis="blip2_vicuna_instruct/vicuna13b",
        file="instruct_blip_vicuna13b_trimmed.pth",
        llm="Vicuna 13B v1.1",
    ),
    _instructblip(
        "flan-t5-xl",
        FLAN_T5_XL,
        FLANT5_DEMO,
        lavis="blip2_t5_instruct/flant5xl",
        file="instruct_blip_flanxl_trimmed.pth",
        llm="google/flan-t5-xl",
    ),
    _instructblip(
        "flan-t5-xxl",
        FLAN_T5_XXL,
        FLANT5_DEMO,
        lavis="blip2_t5_instruct/flant5xxl",
        file="instruct_blip_flanxxl_trimmed.pth",
        llm="google/flan-t5-xxl",
    ),
    _blip2(
        "opt-2.7b",
        OPT_2_7B,
        BLIP2_OPT_DEMO,
        lavis="blip2_opt/pretrain_opt2.7b",
        file="blip2_pretrained_opt2.7b.pth",
        llm="facebook/opt-2.7b",
    ),
    _blip2(
        "opt-6.7b",
        OPT_6_7B,
        BLIP2_OPT_DEMO,
        lavis="blip2_opt/pretrain_opt6.7b",
        file="blip2_pretrained_opt6.7b.pth",
        llm="facebook/opt-6.7b",
    ),
    _blip2(
        "flan-t5-xl",
        FLAN_T5_XL,
        BLIP2_FLANT5_DEMO,
        lavis="blip2_t5/pretrain_flant5xl",
        file="blip2_pretrained_flant5xl.pth",
        llm="google/flan-t5-xl",
    ),
    _blip2(
        "flan-t5-xxl",
        FLAN_T5_XXL,
        BLIP2_FLANT5_DEMO,
        lavis="blip2_t5/pretrain_flant5xxl",
        file="blip2_pretrained_flant5xxl.pth",
        llm="google/flan-t5-xxl",
    ),
    _blip2(
        "opt-2.7b-coco",
        OPT_2_7B,
        BLIP2_OPT_DEMO,
        lavis="blip2_opt/caption_coco_opt2.7b",
        file="blip2_caption_opt2.7b.pth",
        llm="facebook/opt-2.7b",
    ),
    _blip2(
        "opt-6.7b-coco",
        OPT_6_7B,
        BLIP2_OPT_DEMO,
        lavis="blip2_opt/caption_coco_opt6.7b",
        file="blip2_caption_opt6.7b.pth",
        llm="facebook/opt-6.7b",
    ),
    _blip2(
        "flan-t5-xl-coco",
        FLAN_T5_XL,
        BLIP2_FLANT5_DEMO,
        lavis="blip2_t5/caption_coco_flant5xl",
        file="blip2_caption_flant5xl.pth",
        llm="google/flan-t5-xl",
    ),
    _minigpt4(
        "vicuna-7b",
        VICUNA_7B,
        minigpt4="vicuna7b",
        file="prerained_minigpt4_7b.pth",
        llm="Vicuna 7B v0",
    ),
    _minigpt4(
        "vicuna-13b",
        VICUNA_13B,
        minigpt4="vicuna13b",
        file="pretrained_minigpt4.pth",
        llm="Vicuna 13B v0",
    ),
    _minigpt4_merging(
        "minigpt4-llama-2-7b",
        VIT_G,
        LLAMA2_TEMPLATE,
        minigpt4="llama2-7b",
        file="pretrained_minigpt4_llama2_7b.pth",
    ),
    _minigpt4_merging(
        "minigpt-v2",
        VIT_G_448,
        MINIGPT_V2_TEMPLATE,
        minigpt4="minigptv2",
        file="minigptv2_checkpoint.pth",
        lora=16.0,  # minigptv2_eval.yaml
    ),
)

MODELS: Mapping[str, Model] = {row.name: row for row in ROWS}
"""Every model, by name."""
