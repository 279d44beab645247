"""What the kit for a GPU machine says of a served build; here on CPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from benchmarks.gpu.prove_server import FACTS, main


def test_a_served_build_answers_as_its_verification_did(
    demo_build: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "no-build").mkdir()
    builds = [str(tmp_path / "no-build"), str(demo_build("instructblip-demo-vicuna"))]
    done = CliRunner().invoke(main, [*builds, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    refused, *facts = map(json.loads, (tmp_path / FACTS).read_text().splitlines())
    assert refused["build"] == "no-build"
    assert refused["passed"] is False
    shares = [fact for fact in facts if fact["name"].startswith("the same tokens")]
    assert [fact["value"] for fact in shares] == [1, 1]
    assert all(fact["passed"] for fact in shares)
    assert "ready" in facts[0]["name"]
