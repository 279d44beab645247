"""Which model an adapter was trained on, and which it is given to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iblip.export.checkpoint.source import AdapterName, ModelSource, adapters_from_words
from iblip.export.errors import CheckpointError, OptionError
from iblip.export.opening import source_of_adapters
from iblip.export.progress import Silent
from tests.export.adapters.conftest import Noted, opened

Save = Callable[..., tuple[Path, Path]]


@pytest.fixture
def adapter(save_adapter: Save) -> tuple[Path, Path]:
    """A checkpoint, and an adapter that says it was trained on it."""
    return save_adapter("llama", target_modules=["q_proj"])


def say(file: Path, **changes: Any) -> None:
    """Changes some of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copy_of(base: Path, place: Path) -> Path:
    return Path(shutil.copytree(base, place))


def test_the_model_is_what_the_adapter_was_trained_on(adapter: tuple[Path, Path]) -> None:
    base, directory = adapter
    names = adapters_from_words([str(directory)])
    noted = Noted()
    source = source_of_adapters(names, noted)
    assert source == ModelSource(model=str(base), adapters=names)
    assert noted.notes == [f"--model is not given: {base} is what {directory} was trained on"]
    say(directory / "adapter_config.json", base_model_name_or_path="acme/tiny", revision="v2")
    assert source_of_adapters(names, Silent()) == ModelSource(
        model="acme/tiny", revision="v2", adapters=names
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [(None, "does not say which model"), ("/nowhere/at/all", "there is no such directory here")],
)
def test_a_model_that_is_not_said_or_not_here_has_to_be_given(
    adapter: tuple[Path, Path], said: str | None, message: str
) -> None:
    say(adapter[1] / "adapter_config.json", base_model_name_or_path=said)
    with pytest.raises(OptionError, match=message):
        source_of_adapters(adapters_from_words([adapter[1]]), Silent())


def test_the_model_itself_goes_without_remark(adapter: tuple[Path, Path]) -> None:
    noted = Noted()
    opened(*adapter, progress=noted)
    assert noted.notes == []


@pytest.mark.parametrize(
    ("trained_on", "called"),
    [("acme/tiny", "Acme/Tiny"), ("/cache/models--acme--tiny/snapshots/12ab", "acme/tiny")],
)
def test_a_copy_that_says_the_same_name_goes_without_remark(
    adapter: tuple[Path, Path], tmp_path: Path, trained_on: str, called: str
) -> None:
    base, directory = adapter
    copy = copy_of(base, tmp_path / "copy")
    say(copy / "config.json", _name_or_path=called)
    say(directory / "adapter_config.json", base_model_name_or_path=trained_on)
    noted = Noted()
    opened(copy, directory, progress=noted)
    assert noted.notes == []


def test_a_copy_in_the_hubs_cache_is_known_by_its_folder(
    adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    base, directory = adapter
    copy = copy_of(base, tmp_path / "models--acme--other" / "snapshots" / "12ab")
    say(directory / "adapter_config.json", base_model_name_or_path="acme/tiny")
    with pytest.raises(CheckpointError, match="trained on acme/tiny, and --model is acme/other"):
        opened(copy, directory)


def test_another_model_is_refused_with_both_names(
    adapter: tuple[Path, Path], random_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base, directory = adapter
    other = random_checkpoint("t5")
    with pytest.raises(CheckpointError, match=f"trained on {base}, and --model is {other}"):
        opened(other, directory)
    with pytest.raises(CheckpointError, match=r"trained on a InstructBlip.*is a Blip2"):
        opened(random_checkpoint("opt"), directory)
    copy = copy_of(base, tmp_path / "copy")
    say(copy / "config.json", _name_or_path="acme/other")
    say(directory / "adapter_config.json", base_model_name_or_path="acme/tiny")
    with pytest.raises(CheckpointError, match="trained on acme/tiny, and --model is acme/other"):
        opened(copy, directory)
    # Trained on the language model alone, as the checkpoint calls it.
    text = json.loads((copy / "config.json").read_text())["text_config"]
    say(copy / "config.json", text_config={**text, "_name_or_path": "acme/tiny"})
    opened(copy, directory)


def test_what_names_cannot_tell_is_remarked(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, directory = adapter
    copy = copy_of(base, tmp_path / "copy")
    for said in (str(base), "acme/tiny", "/nowhere/else"):
        say(directory / "adapter_config.json", base_model_name_or_path=said)
        noted = Noted()
        opened(copy, directory, progress=noted)
        (note,) = noted.notes
        assert note.startswith(f"--adapter {directory} was trained on {said}; whether {copy} is")


def test_a_directory_that_is_none(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, directory = adapter
    with pytest.raises(OptionError, match=f"no adapter directory {tmp_path / 'none'}"):
        opened(base, tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is missing: .* is not an ada"):
        opened(base, base)
    with pytest.raises(CheckpointError, match=f"is not an adapter.* such as {directory}"):
        opened(base, directory.parent)
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model\.safetensors nor "):
        opened(base, directory)


def test_an_adapter_is_no_model(adapter: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="Give --model the model that it was trained on, and"):
        opened(adapter[1])


@pytest.mark.parametrize(
    ("word", "place", "revision"),
    [
        ("acme/lora", "acme/lora", None),
        ("acme/lora@v1.2", "acme/lora", "v1.2"),
        ("./acme/lora", "./acme/lora", None),
        ("/some/lora@home", "/some/lora@home", None),
        (Path("/acme/lora"), "/acme/lora", None),
    ],
)
def test_words_of_the_command_line(word: str | Path, place: str, revision: str | None) -> None:
    (name,) = adapters_from_words([word])
    assert name == AdapterName(place=place, revision=revision)
    assert name.is_on_hub is (place == "acme/lora")


@pytest.mark.parametrize(
    ("word", "message"), [("", "--adapter is empty"), ("acme/lora@", "a revision behind the @")]
)
def test_words_that_are_none(word: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        adapters_from_words([word])
