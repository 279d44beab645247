"""Runs of many questions, by targets without a model: none lost, none twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from iblip.export.errors import EngineError, InputError, OptionError
from iblip.serving.bulk.rows import Shard, read_rows
from iblip.serving.bulk.running import FAULTS_IN_A_ROW, Job, run_job
from iblip.serving.bulk.targets import Targets
from iblip.serving.client.errors import UnreachableError
from tests.serving.bulk.answerers import LIMITS, SMALL, Echo


@pytest.fixture
def folder(tmp_path):
    """Twelve grey images, and a file that is none."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(12):
        Image.new("L", (8, 8), number * 10).save(path / f"{number:02}.png")
    (path / "bad.png").write_bytes(b"no image")
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(given, output, *targets, **job):
    job = {"options": {}, "prompts": ("What?",), **job}
    return run_job(read_rows(given), Targets(targets or [Echo()]), output, Job(**job))


def test_every_image_has_a_line_in_their_order(folder, output):
    summary = run(folder, output)
    lines = lines_of(output)
    assert [line["id"] for line in lines] == sorted(path.name for path in folder.iterdir())
    assert [line.get("text") for line in lines[:3]] == ["What? 0", "What? 10", "What? 20"]
    assert lines[12]["error"]["kind"] == "InputError"
    assert "is not an image" in lines[12]["error"]["message"]
    assert (summary.answered, summary.failed, summary.present) == (12, 1, 0)
    assert str(summary) == "12 answered, 1 failed"
    assert (summary.vision_cache_hits, summary.cached_prompt_tokens) == (None, None)


def test_a_second_run_asks_only_what_has_no_line(folder, output):
    run(folder, output)
    Image.new("L", (8, 8), 200).save(folder / "new.png")
    echo = Echo()
    summary = run(folder, output, echo, prompts=("What?", "Why?"))
    assert sorted(prompt for _, prompt, _ in echo.asked) == ["What?"] + ["Why?"] * 13
    assert (summary.answered, summary.failed, summary.present) == (14, 1, 13)
    keys = [(line["id"], line["prompt"]) for line in lines_of(output)]
    assert len(set(keys)) == len(keys) == 28


def test_several_prompts_are_asked_of_an_image_that_is_decoded_once(folder, output):
    echo = Echo()
    run(folder, output, echo, prompts=("What?", "Why?"))
    by_image = {id(pixels): set() for pixels, _, _ in echo.asked}
    for pixels, prompt, _ in echo.asked:
        by_image[id(pixels)].add(prompt)
    assert list(by_image.values()) == [{"What?", "Why?"}] * 12


def test_rows_have_prompts_and_options_of_their_own(folder, tmp_path, output):
    rows = [
        {"image": "images/00.png", "prompt": ["A?", "B?"], "id": "first"},
        {"image": "images/01.png", "options": {"max_new_tokens": 9}},
        {"image": "images/01.png", "prompt": "C?", "options": {"max_new_tokens": 0}},
        {"image": ["images/00.png", "images/02.png"], "id": "two"},
        "damaged",
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    echo = Echo()
    run(path, output, echo, options={"min_new_tokens": 2})
    everybody = {"min_new_tokens": 2}
    assert sorted((prompt, options) for _, prompt, options in echo.asked if prompt != "What?") == [
        ("A?", everybody),
        ("B?", everybody),
    ]
    assert {"max_new_tokens": 9, **everybody} in [options for _, _, options in echo.asked]
    lines = lines_of(output)
    assert [line["id"] for line in lines] == [
        "first",
        "first",
        "images/01.png",
        "images/01.png",
        "two",
        "line 5",
    ]
    assert lines[4]["text"] == "What? 10"
    assert [line.get("error", {}).get("kind") for line in lines[3::2]] == [
        "OptionError",
        "InputError",
    ]


def test_two_rows_of_one_id_and_prompt_are_refused_before_any_is_asked(tmp_path, folder, output):
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"image": "images/00.png", "id": "x"})
    path.write_text(f"{row}\n{row}\n")
    echo = Echo()
    with pytest.raises(InputError, match=r"two rows have the id 'x' and the prompt 'What\?'"):
        run(path, output, echo)
    assert echo.asked == []
    assert list(output.parent.glob(f"{output.name}*")) == []
    output.touch()  # as a script that has asked for a name of its own
    with pytest.raises(InputError, match="two rows have the id"):
        run(path, output, echo)
    assert output.exists()


def test_without_a_prompt_nothing_is_asked_unless_the_model_captions(folder, output, tmp_path):
    with pytest.raises(OptionError, match=r"the row '00\.png' has no prompt, and the run has no"):
        run(folder, output, prompts=())
    captions = replace(SMALL, limits=replace(LIMITS, max_instruction=None))
    summary = run(folder, tmp_path / "captions.jsonl", Echo(captions), prompts=())
    assert summary.answered == 12


def test_a_run_that_meant_something_else_is_not_continued(folder, output):
    run(folder, output)
    with pytest.raises(OptionError, match=r"was begun with options \{\}; this is .*Name another"):
        run(folder, output, options={"num_beams": 2})
    other = replace(SMALL, build=replace(SMALL.build, name="other"))
    with pytest.raises(OptionError, match="was begun with build"):
        run(folder, output, Echo(other))


def test_a_lost_server_ends_the_run_and_its_question_has_no_line(folder, output):
    echo = Echo()
    rows = [{"image": f"images/{n:02}.png", "prompt": f"{n}?"} for n in range(12)]
    path = folder.parent / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    echo.fails["7?"] = UnreachableError("there is no server")
    with pytest.raises(UnreachableError):
        run(path, output, echo)
    assert [line["prompt"] for line in lines_of(output)] == [f"{n}?" for n in range(7)]
    assert run(path, output).present == 7
    assert [line["prompt"] for line in lines_of(output)] == [f"{n}?" for n in range(12)]


def test_an_engine_that_fails_one_question_goes_on_and_one_that_fails_all_ends(folder, output):
    rows = [{"image": "images/00.png", "prompt": f"{n}?"} for n in range(FAULTS_IN_A_ROW + 5)]
    path = folder.parent / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    echo = Echo()
    echo.fails["1?"] = EngineError("out of memory")
    echo.fails |= {f"{n}?": EngineError("the GPU is lost") for n in range(3, len(rows))}
    with pytest.raises(EngineError, match=r"16 questions in a row failed, and have no line; .*GPU"):
        run(path, output, echo)
    assert [
        (line["prompt"], line.get("error", {}).get("message")) for line in lines_of(output)
    ] == [
        ("0?", None),
        ("1?", "out of memory"),
        ("2?", None),
    ]
    del echo.fails["1?"]
    again = Echo()
    again.fails[rows[-1]["prompt"]] = EngineError("out of memory")
    summary = run(path, output, again)  # the last question fails, and has its line
    assert (summary.failed, summary.present) == (1, 3)


def test_a_run_whose_options_are_always_refused_ends_and_one_that_has_begun_goes_on(folder, output):
    rows = [{"image": "images/00.png", "prompt": f"{n}?"} for n in range(FAULTS_IN_A_ROW + 5)]
    path = folder.parent / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    echo = Echo()
    echo.fails = {row["prompt"]: OptionError("num_beams is 64") for row in rows}
    with pytest.raises(OptionError, match=r"16 questions in a row failed, .* num_beams is 64"):
        run(path, output, echo, options={"num_beams": 64})
    assert list(output.parent.glob(f"{output.name}*")) == []
    again = Echo()
    again.fails = {prompt: error for prompt, error in echo.fails.items() if prompt != "2?"}
    summary = run(path, output, again)
    assert (summary.answered, summary.failed) == (1, len(rows) - 1)
    assert [line["prompt"] for line in lines_of(output)] == [row["prompt"] for row in rows]


def test_shards_are_the_whole_and_have_nothing_in_common(folder, tmp_path):
    found = []
    for index in (1, 2, 3):
        path = tmp_path / f"{index}.jsonl"
        run(folder, path, shard=Shard.parse(f"{index}/3"))
        found += [line["id"] for line in lines_of(path)]
    assert sorted(found) == sorted(path.name for path in folder.iterdir())


def test_servers_share_the_questions_by_their_slots(folder, output):
    small = replace(SMALL, limits=replace(LIMITS, slots=1))
    large, little = Echo(seconds=0.02), Echo(small, seconds=0.02)
    assert Targets([large, little]).concurrency(1) == 10
    assert Targets([large, little]).concurrency(4) == 4
    prompts = tuple(f"{number}?" for number in range(3))
    run(folder, output, large, little, prompts=prompts)
    assert len(large.asked) > len(little.asked) > 0
    assert len(large.asked) + len(little.asked) == 36
    other = replace(SMALL, build=replace(SMALL.build, created="2026-11-29T00:00:00+00:00"))
    with pytest.raises(OptionError, match="the servers have different builds"):
        Targets([Echo(), Echo(other)])
    with pytest.raises(OptionError, match="there is nothing to ask"):
        Targets([])


def test_a_run_that_is_killed_loses_nothing_and_repeats_nothing(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(120):
        Image.new("L", (8, 8), number).save(images / f"{number:03}.png")
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "tests.serving.bulk.answerers", str(images), str(output)]
    counts = [0]
    for _ in range(4):
        most = str(counts[-1] + 8)  # few more, however late it is killed
        process = subprocess.Popen([*command, most], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        end = time.monotonic() + 60
        while not output.exists() or output.read_bytes().count(b"\n") < counts[-1] + 8:
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        process.wait()
        process.stdout.close()
        counts.append(output.read_bytes().count(b"\n"))
    assert counts[-1] < 240
    done = subprocess.run([*command, "1000"], capture_output=True, text=True, check=True)
    assert f"{counts[-1]} from before" in done.stdout
    keys = [(line["id"], line["prompt"]) for line in lines_of(output)]
    assert len(set(keys)) == len(keys) == 240
