"""The families of models: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping

from export.families.blip2 import BLIP2
from export.families.family import Family as Family
from export.families.instructblip import INSTRUCTBLIP
from export.families.minigpt4 import MINIGPT4

FAMILIES: Mapping[str, Family] = {
    family.architecture: family for family in (INSTRUCTBLIP, BLIP2, MINIGPT4)
}
"""Architecture, as `config.json` names it, to family."""
