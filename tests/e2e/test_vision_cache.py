"""A server that finds on the disk what another has encoded, before it was restarted."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest
from click.testing import CliRunner

import iblip
from iblip.serving.cli import iblip as commands
from iblip.serving.steps.metrics import VISION_CACHE

PROMPTS = ("What digit is in the image?", "Describe the image.")
RUNS = re.compile(r'^nv_inference_exec_count\{model="vision_encoder",version="1"\} (\d+)$', re.M)
VALUES = re.compile(r'^(iblip_vision_cache_\w+)\{model="instructblip"\} (\S+)$', re.M)


def ask_all(server, images):
    with iblip.Client(server.url) as client:
        answers = [
            client.ask(image, prompt, max_new_tokens=12, logprobs=1)
            for image in images
            for prompt in PROMPTS
        ]
    return [(answer.text, answer.token_ids, answer.logprobs) for answer in answers]


def metrics(server):
    text = urllib.request.urlopen(server.metrics_url, timeout=60).read().decode()
    values = {name: float(value) for name, value in VALUES.findall(text)}
    return int(RUNS.findall(text)[0]), values


@pytest.mark.parametrize("name", ["instructblip-demo-vicuna", "instructblip-demo-flant5"])
def test_a_catalogue_is_not_encoded_again_after_a_restart(demo_build, examples, tmp_path, name):
    build, images = demo_build(name), [example.image for example in examples[:4]]
    options = {"cache_mib": 0, "vision_cache": tmp_path / "cache"}
    with iblip.serve(build, cache_mib=0) as server:
        without = ask_all(server, images)
        assert metrics(server)[1] == {}
    with iblip.serve(build, **options) as server:
        assert ask_all(server, images) == without
        runs, _ = metrics(server)
        assert runs >= len(images)
        end = time.monotonic() + 60
        while len(list((tmp_path / "cache").glob("*.embeds"))) <= len(images):  # the canary's, too
            assert time.monotonic() < end
            time.sleep(0.1)
    with iblip.serve(build, **options) as server:
        warm, _ = metrics(server)
        assert ask_all(server, images) == without
        deadline = time.monotonic() + 60
        while (now := metrics(server))[1].get("iblip_vision_cache_hits_total", 0) < 8:
            assert time.monotonic() < deadline, now
            time.sleep(0.1)
    runs, values = now
    assert runs == warm
    assert values.keys() == VISION_CACHE.keys()
    assert values["iblip_vision_cache_misses_total"] == 0
    entries = list((tmp_path / "cache").iterdir())
    assert values["iblip_vision_cache_bytes"] == sum(path.stat().st_size for path in entries)
    with iblip.load(build, vision_cache=tmp_path / "cache") as model:  # and a process finds them
        model.ask(images[0], PROMPTS[0], max_new_tokens=1)
    assert sorted((tmp_path / "cache").iterdir()) == sorted(entries)


def test_damage_and_several_images_are_answered(demo_build, examples, tmp_path):
    """Of a request's images some are found, some are damaged, and two are the same."""
    build, images = demo_build("minigpt4-demo"), [example.image for example in examples[:3]]
    asked = [*images, images[0]]
    prompt = "Describe the images."
    with iblip.serve(build, vision_cache=tmp_path) as server, iblip.Client(server.url) as client:
        expected = client.ask(asked, prompt, max_new_tokens=12).text
        entries = sorted(tmp_path.iterdir())
        for path in entries[::2]:
            path.write_bytes(path.read_bytes()[:-1])
        assert client.ask(asked, prompt, max_new_tokens=12).text == expected
        assert sorted(tmp_path.iterdir()) == entries
        for path in entries:
            assert len(path.read_bytes()) == len(entries[0].read_bytes())


def test_the_command_says_what_models_are_told(demo_build, tmp_path):
    words = ["serve", demo_build("instructblip-demo-vicuna"), "--print-command", "--json"]
    words += ["--vision-cache", tmp_path / "cache", "--vision-cache-size", 5]
    done = CliRunner().invoke(commands, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["environment"]["IBLIP_VISION_CACHE"]
    assert json.loads(told) == [str(tmp_path / "cache"), 5 << 20]
