"""`iblip.verify`: a report that can be asked, saved and shown."""

from __future__ import annotations

import json
from html import escape

import pytest

import iblip
from iblip import Build, BuildDirectoryError, OptionError, Report
from iblip.serving.parity.report import BuildReport, Check, StageReport
from iblip.serving.parity.report import Report as ParityReport

STAGES = ("vision_encoder", "text")


@pytest.fixture(scope="module")
def report(vicuna_build):
    return iblip.verify(str(vicuna_build), limit=2, stages=STAGES, progress=None)


def test_a_verified_build_passes(report, vicuna_build):
    assert report.passed
    assert bool(report)
    assert report.builds == (Build(vicuna_build),)
    assert report.verdict.startswith("PASS: the build is within every limit; answers equal")
    assert report.to_json()["builds"][0]["stages"].keys() == set(STAGES)
    assert "Vision encoder, block by block" in str(report)
    assert repr(report) == f"<Report of {vicuna_build}: passed>"


def test_it_is_saved_as_a_page_and_its_data(report, tmp_path):
    page = report.save(str(tmp_path / "report.html"))
    assert page == tmp_path / "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_json()
    with pytest.raises(OptionError, match=r"^the page is .*\.txt; expected a file whose name ends"):
        report.save(tmp_path / "report.txt")
    with pytest.raises(OptionError, match=r"^the page is .*missing"):
        report.save(tmp_path / "missing" / "report.html")


def test_a_notebook_shows_the_verdict_and_the_page(report):
    shown = report._repr_html_()
    assert shown.startswith("<div>PASS: the build is within every limit")
    assert "<script" not in shown
    assert escape("<h1>Parity of instructblip-demo-vicuna") in shown


def test_a_build_that_fails_says_where(vicuna_build):
    check = Check(name="same text", value=0.5, limit=1.0, sense="least")
    stage = StageReport(checks=(check,), details={"different": []})
    failed = BuildReport(
        build=str(vicuna_build), label="fp32", precision={}, stages={"text": stage}
    )
    report = Report(
        ParityReport(
            checkpoint="demo",
            model="demo",
            synthetic=False,
            reference={"kind": "whole", "reason": "it fits"},
            examples=2,
            builds=(failed,),
            created="2026-01-01T00:00:00+00:00",
            tools={},
        ),
        (Build(vicuna_build),),
    )
    assert not report.passed
    assert report.verdict == f"FAIL: {vicuna_build} exceeds the thresholds of text"
    assert report._repr_html_().startswith(f"<div>FAIL: {vicuna_build} exceeds")


def test_what_cannot_be_verified_is_refused(vicuna_build, tmp_path):
    with pytest.raises(OptionError, match="verify was given no build; expected one or more"):
        iblip.verify()
    with pytest.raises(OptionError, match="expected one or more build directories, each once"):
        iblip.verify(vicuna_build, Build(vicuna_build), progress=None)
    with pytest.raises(OptionError, match=r"^stages x: there is no such stage"):
        iblip.verify(vicuna_build, stages=("x",))
    with pytest.raises(BuildDirectoryError, match="is not a build"):
        iblip.verify(tmp_path)
