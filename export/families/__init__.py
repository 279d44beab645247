"""The families of models: one file and one row each."""

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
