"""What `--model` and its companions mean, and what the manifest keeps of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iblip.export import opening
from iblip.export.checkpoint.checkpoint import DEMO, checkpoint_from_directory
from iblip.export.checkpoint.source import ModelSource, parts_from_words
from iblip.export.errors import OptionError
from iblip.export.opening import checkpoint_from_source
from iblip.export.progress import Silent


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> list[ModelSource]:
    """A scheme `parts:` whose checkpoint lies in the directory that its one part is."""
    asked: list[ModelSource] = []

    def read(source: ModelSource, progress: object) -> object:
        asked.append(source)
        return checkpoint_from_directory(source.parts["all"])

    monkeypatch.setattr(opening, "READERS", {"parts": read})
    return asked


def test_a_directory_is_opened_again_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO.parent)
    checkpoint = checkpoint_from_source(ModelSource(model=DEMO.name), Silent())
    assert checkpoint.source == ModelSource(model=str(DEMO))
    assert checkpoint.name == DEMO.name


def test_a_source_survives_json() -> None:
    source = ModelSource(
        model="lavis:one/two", revision="v1", parts={"vit": Path("a.pth")}, image_size=364
    )
    text = json.dumps({**source.to_json(), "files": {}})
    assert ModelSource.from_json(json.loads(text)) == source


def test_parts_reach_the_reader_of_their_scheme(
    reader: list[ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEMO.parent)
    source = ModelSource(model="parts:any/name", parts=parts_from_words([f"all={DEMO.name}"]))
    checkpoint = checkpoint_from_source(source, Silent())
    assert reader == [source]
    assert checkpoint.source == replace(source, parts={"all": DEMO})
    assert checkpoint.source.name == "any-name"


def test_another_image_size_is_part_of_the_source() -> None:
    checkpoint = checkpoint_from_source(ModelSource(model=str(DEMO), image_size=48), Silent())
    assert checkpoint.config.vision_config.image_size == 48
    assert checkpoint.source == ModelSource(model=str(DEMO), image_size=48)


def test_a_directory_goes_before_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts:x").symlink_to(DEMO)
    monkeypatch.chdir(tmp_path)
    source = ModelSource(model="parts:x")
    assert source.scheme is None
    assert checkpoint_from_source(source, Silent()).directory == DEMO


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ModelSource(model="laviz:x"), r"there is no reader for laviz:; known: "),
        (ModelSource(model=str(DEMO), revision="main"), "--revision is for models of the hub"),
        (ModelSource(model=str(DEMO), parts={"vit": DEMO}), "--part is for models whose files"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model,
)
def test_options_that_do_not_go_together(source: ModelSource, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        checkpoint_from_source(source, Silent())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vit"], "--part vit: expected NAME=PATH"),
        (["=a.pth"], "expected NAME=PATH"),
        (["vit="], "expected NAME=PATH"),
        (["vit=a.pth", "vit=b.pth"], "--part vit is given twice: a.pth and b.pth"),
    ],
)
def test_parts_that_are_none(words: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parts_from_words(words)


@pytest.mark.parametrize(
    ("model", "on_hub"),
    [
        ("acme/tiny", True),
        ("acme/tiny-7b.v1_5", True),
        ("nowhere", False),
        ("./nowhere", False),
        ("../nowhere", False),
        ("some/where/else", False),
        ("/nowhere", False),
        ("lavis:acme/tiny", False),
        (str(DEMO), False),
    ],
)
def test_which_names_are_the_hubs(model: str, on_hub: bool) -> None:
    assert ModelSource(model=model).is_on_hub is on_hub


def test_a_directory_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "tiny").symlink_to(DEMO)
    monkeypatch.chdir(tmp_path)
    assert checkpoint_from_source(ModelSource(model="acme/tiny"), Silent()).directory == DEMO
