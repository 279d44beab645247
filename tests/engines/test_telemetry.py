"""The engines' libraries report nothing, and leave nothing among the user's files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("engine", "library"),
    [
        ("iblip.engines.onnxruntime", "onnxruntime"),
        ("iblip.engines.openvino", "openvino"),
    ],
)
def test_an_engine_reports_nothing(engine, library, tmp_path):
    pytest.importorskip(library)
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH"}}
    (tmp_path / "home").mkdir()
    home, temporary = str(tmp_path / "home"), str(tmp_path)
    subprocess.run(
        [sys.executable, "-c", f"import {engine}, {library}"],
        env={**kept, "HOME": home, "TMPDIR": temporary},
        check=True,
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["home"]
