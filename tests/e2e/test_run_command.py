"""`iblip run` against a server and in this process: the same answers, in a file."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

import iblip
from iblip.serving.cli import iblip as commands

PROMPTS = ("What digit is in the image?", "Describe the image.")


@pytest.fixture
def folder(examples, tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number, example in enumerate(examples[:5]):
        shutil.copyfile(example.image, path / f"{number}.webp")
    (path / "bad.webp").write_bytes(b"no image")
    return path


def call(*words):
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    done = CliRunner().invoke(commands, ["-q", "run", *map(str, words), *prompts, "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def lines_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    others = {"timing", "cached_prompt_tokens"}  # they follow from what ran at the same time
    return [{name: line[name] for name in line if name not in others} for line in lines]


def test_a_server_and_this_process_write_the_same_lines(served, client, folder, tmp_path):
    outputs = [tmp_path / "server.jsonl", tmp_path / "build.jsonl"]
    by_server = call(folder, "--output", outputs[0], "--url", served.url, "--max-new-tokens", 9)
    by_build = call(folder, "--output", outputs[1], "--build", served.build, "--max-new-tokens", 9)
    expected = {"format": 1, "answered": 10, "failed": 2, "present": 0}
    for result, hits in ((by_server, None), (by_build, 5)):
        assert result.pop("cached_prompt_tokens") >= 0
        assert result == {**expected, "vision_cache_hits": hits}
    lines, others = map(lines_of, outputs)
    assert lines == others
    for line in lines[:4]:
        answer = client.ask(folder / line["id"], line["prompt"], max_new_tokens=9)
        assert (line["text"], line["token_ids"]) == (answer.text, list(answer.token_ids))
    assert [line["error"]["kind"] for line in lines[10:]] == ["InputError"] * 2


def test_a_run_goes_on_from_python(served, folder, tmp_path):
    output, watched = tmp_path / "out.jsonl", []
    for _ in range(2):
        summary = iblip.run(
            folder,
            output,
            prompt=PROMPTS,
            url=[served.url, served.url],
            candidates=["3", "7"],
            progress=watched.append,
        )
    assert (summary.answered, summary.failed, summary.present) == (0, 0, 12)
    assert watched[-1].total == 6
    lines = lines_of(output)
    assert [len(line["ranking"]) for line in lines[:10]] == [2] * 10
    with pytest.raises(iblip.OptionError, match="was begun with options"):
        iblip.run(folder, output, prompt=PROMPTS, url=served.url)
