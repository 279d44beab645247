"""Where the demo checkpoints are found: beside the code, or in a package of data."""

from __future__ import annotations

import pytest

from iblip.export.checkpoint import demo
from iblip.export.checkpoint.demo import demo_checkpoint
from iblip.export.errors import CheckpointError


def test_a_checkout_has_its_own():
    assert demo_checkpoint() == demo.FOLDER / "instructblip-demo-vicuna"
    assert demo_checkpoint("minigpt4-demo").is_dir()


def test_elsewhere_a_package_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "no checkout")
    with pytest.raises(CheckpointError, match=r"is not installed: .* wheel iblip-demo, which"):
        demo_checkpoint()
    directory = tmp_path / "iblip_demo" / "instructblip-demo-vicuna"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (tmp_path / "iblip_demo" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert demo_checkpoint() == directory
    with pytest.raises(CheckpointError, match="minigpt4-demo is not installed"):
        demo_checkpoint("minigpt4-demo")
