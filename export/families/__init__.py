"""The families of models: InstructBLIP, BLIP-2 and MiniGPT-4, with one file and one row each.

A `Family` (`family`) has what is particular to one: transformers' classes for it, how its config is
read, its projector, the form of its prompts, and what ends an answer. transformers has no
MiniGPT-4, so its Hugging Face form is this project's own (`minigpt4`), of modules that transformers
has.

This room reads configs and does not know graphs. `FAMILIES` is its table.
"""

from __future__ import annotations

from collections.abc import Mapping

from iblip.export.families.blip2 import BLIP2
from iblip.export.families.family import Family
from iblip.export.families.instructblip import INSTRUCTBLIP
from iblip.export.families.minigpt4 import MINIGPT4

FAMILIES: Mapping[str, Family] = {
    family.architecture: family for family in (INSTRUCTBLIP, BLIP2, MINIGPT4)
}
"""Architecture, as `config.json` names it, to family."""
