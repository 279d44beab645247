"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500), on LLaMA (Vicuna) and on T5 (FLAN-T5)."""

from __future__ import annotations

from iblip.export.families.family import Family

INSTRUCTBLIP = Family(
    name="instructblip",
    architecture="InstructBlipForConditionalGeneration",
    processor="InstructBlipProcessor",
    projector="instruction_qformer",
    images="frames",
    prompt_template="{image}{prompt}",
    # Some hub configs name a token that ends nothing (LAVIS issue 509).
    ends_as_configured=False,
    max_new_tokens=256,  # LAVIS, blip2_vicuna_instruct.py, `generate`
)
