"""A cache, and entries of any content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.engines.cache.key import Recipe
from iblip.engines.cache.store import EngineCache


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def recipe_of(number: int) -> Recipe:
    """A recipe that is like no other."""
    return Recipe(
        graph=f"{number:064x}",
        precision="fp16",
        library="tensorrt-rtx",
        version="1.7.1",
        targets=("sm89",),
        device=None,
        settings={"flags": [], "profiles": []},
    )


@pytest.fixture
def keep(cache: EngineCache, tmp_path: Path) -> Callable[..., str]:
    """`keep(3, b"…")`: keeps a plan of that content as a build does; returns its key."""

    def make(number: int, content: bytes = b"a plan") -> str:
        recipe, plan = recipe_of(number), tmp_path / f"built-{number}.plan"
        plan.write_bytes(content)
        with cache.claim(recipe.key, waiting=None) as free:
            assert free
            cache.keep(
                recipe,
                plan,
                graph="vision_encoder/model",
                details={"bytes": len(content), "seconds": 1.5},
                build="/builds/demo",
            )
        plan.unlink()
        return recipe.key

    return make
