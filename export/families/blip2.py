"""BLIP-2 (Li et al. 2023, arXiv 2301.12597), on OPT and on T5 (FLAN-T5)."""

from __future__ import annotations

from iblip.export.families.family import Family

BLIP2 = Family(
    name="blip2",
    architecture="Blip2ForConditionalGeneration",
    processor="Blip2Processor",
    projector="qformer",
    images="one",
    prompt_template="{image}{prompt}",
    # On OPT an answer ends with a line break (LAVIS, blip2_opt.py), which only the config knows.
    ends_as_configured=True,
    max_new_tokens=30,  # LAVIS, blip2_opt.py and blip2_t5.py, `generate`
)
