"""Images sent as files: decoded on the server, and answered as the client's own are."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException

from iblip.serving.client import Client
from iblip.serving.steps.metrics import PERIOD_S
from tests.serving.decoding.bombs import huge_png, many_scans

PROMPT = "Describe the image."
ENDPOINT = "instructblip_unary/generate"


def text_of(data):
    return base64.b64encode(data).decode()


def post(served, body, path=ENDPOINT):
    request = urllib.request.Request(
        f"{served.server.http_url}/v2/models/{path}", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def ask(served, image, prompt=PROMPT, **options):
    """Text and finish of one answer."""
    answer = json.loads(post(served, {"image": image, "prompt": prompt, **options}))
    return answer["text"], json.loads(answer["finish"])


def refusal(served, image, path=ENDPOINT):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(served, {"image": image, "prompt": PROMPT}, path)
    return caught.value.code, caught.value.read().decode()


def as_file(picture, kind, mode="RGB", **options):
    """The picture as a file of another kind."""
    file = io.BytesIO()
    with Image.open(picture) as image:
        image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_file(picture, "JPEG", quality=90, exif=exif)


def transparent(picture):
    file = io.BytesIO()
    with Image.open(picture) as image:
        image = image.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(file, "PNG")
    return file.getvalue()


FILES = {
    "png": lambda picture: as_file(picture, "PNG"),
    "jpeg": lambda picture: as_file(picture, "JPEG", quality=50),
    "webp": lambda picture: picture.read_bytes(),
    "exif": turned,
    "alpha": transparent,
}


@pytest.mark.parametrize("preprocessing", ["viewed", "lavis"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_answered_as_the_client_answers_it(served, picture, kind, preprocessing):
    """To the bit: the most likely tokens have the same log-probabilities."""
    data = FILES[kind](picture)
    with Client(served.url, preprocessing=preprocessing) as client:
        expected = client.ask(data, PROMPT, logprobs=3, max_new_tokens=12)
    options = {"logprobs": 3, "max_new_tokens": 12, "preprocessing": preprocessing}
    text, finish = ask(served, text_of(data), **options)
    assert text == expected.text
    assert finish["token_ids"] == list(expected.token_ids)
    assert [token["logprob"] for token in finish["logprobs"]] == [
        token.logprob for token in expected.logprobs
    ]


def test_bytes_go_over_grpc_as_they_are(served, client, picture):
    data = as_file(picture, "PNG")
    inputs = [grpcclient.InferInput(name, [1], "BYTES") for name in ("image", "prompt")]
    for tensor, value in zip(inputs, (data, PROMPT.encode()), strict=True):
        tensor.set_data_from_numpy(np.array([value], dtype=np.object_))
    with grpcclient.InferenceServerClient(served.url) as triton:
        result = triton.infer("instructblip_unary", inputs)
        assert result.as_numpy("text")[0].decode() == client.ask(data, PROMPT).text
        inputs[0].set_data_from_numpy(np.array([data[:200]], dtype=np.object_))
        with pytest.raises(InferenceServerException, match=r"InputError: .* truncated") as e:
            triton.infer("instructblip_unary", inputs)
    assert e.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_the_answer_as_it_is_written(served, client, picture, tmp_path):
    body = {"image": text_of(picture.read_bytes()), "prompt": PROMPT, "stop": '["###"]'}
    (tmp_path / "body.json").write_text(json.dumps(body))
    address = f"{served.server.http_url}/v2/models/instructblip/generate_stream"
    command = ["curl", "--silent", "--no-buffer", "--json", "@body.json", address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    events = [json.loads(event) for event in re.findall(r"^data: (.*)$", done.stdout, re.M)]
    expected = client.ask(picture, PROMPT, stop=("###",))
    assert "".join(event["text"] for event in events) == expected.text
    assert len(events) > 2
    assert json.loads(events[-1]["finish"])["token_ids"] == list(expected.token_ids)


NODE = """
const [address, image, prompt] = process.argv.slice(1);
const { readFile } = await import("node:fs/promises");
const file = (await readFile(image)).toString("base64");
const body = JSON.stringify({ image: [file, `data:image/webp;base64,${file}`], prompt });
const response = await fetch(address, { method: "POST", body });
console.log((await response.json()).text);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_several_images_from_node(served, client, picture):
    address = f"{served.server.http_url}/v2/models/{ENDPOINT}"
    command = ["node", "--input-type=module", "-e", NODE, address, str(picture), PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == client.ask([picture, picture], PROMPT).text


def test_several_files_keep_their_order_and_their_number_has_a_limit(served, client, examples):
    paths = [example.image for example in examples[:3]]
    text, finish = ask(served, [text_of(path.read_bytes()) for path in paths])
    expected = client.ask(paths, PROMPT)
    assert (text, finish["prompt_tokens"]) == (expected.text, expected.prompt_tokens)
    status, told = refusal(served, [text_of(paths[0].read_bytes())] * 9)
    assert (status, "InputError: the request has 9 images; expected 1 to 4" in told) == (400, True)
    status, told = refusal(served, [text_of(paths[0].read_bytes()), "no image"])
    assert (status, "InputError: image 2 of 2: the image of 8 bytes" in told) == (400, True)


@pytest.mark.parametrize("path", [ENDPOINT, "instructblip/generate_stream"])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("hello", "begins with b'hello', as no format does that is read (JPEG, PNG, WEBP"),
        (text_of(huge_png()), "has more than 89478485 pixels, the most accepted"),
        ("/etc/passwd", "begins with b'/etc/passwd'"),
        ("https://example.org/a.png", "which is not fetched"),
        ("", "is empty: 0 bytes"),
        ([], "the request has 0 images; expected 1 to 4"),
    ],
    ids=["text", "bomb", "path", "address", "empty", "none"],
)
def test_what_is_no_image_is_refused(served, image, message, path):
    status, told = refusal(served, image, path)
    assert status == 400
    assert message in told


def test_a_request_with_files_and_pixels_is_refused(served, picture):
    body = {"image": text_of(picture.read_bytes()), "prompt": PROMPT}
    size = served.manifest.preprocessing
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(served, {**body, "pixels": [0] * (size.height * size.width * 3)})
    assert "the request has both image and pixels" in caught.value.read().decode()


def test_files_of_many_callers_at_once(served, client, examples):
    paths = [example.image for example in examples[:12]]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda path: ask(served, text_of(path.read_bytes()))[0], paths))
    assert found == [client.ask(path, PROMPT).text for path in paths]


def counted(served):
    """What has been decoded, and is known from before, as the metrics say it."""
    with urllib.request.urlopen(served.server.metrics_url, timeout=60) as response:
        text = response.read().decode()
    names = ("decoded", "remembered")
    found = (re.search(rf"^iblip_images_{name}_total{{.*}} (\S+)$", text, re.M) for name in names)
    return [float(one[1]) for one in found]


def settled(served):
    """The same once nothing is still to be shown of what was before."""
    before = counted(served)
    time.sleep(4 * PERIOD_S)
    return before if counted(served) == before else settled(served)


def test_a_file_that_comes_again_is_not_decoded_again(served, picture):
    image = text_of(as_file(picture, "JPEG", quality=71))
    decoded, remembered = settled(served)
    answers = [ask(served, image, prompt) for prompt in (PROMPT, PROMPT, "What digit is it?")]
    end = time.monotonic() + 60
    while sum(counted(served)) < decoded + remembered + 3:
        assert time.monotonic() < end
        time.sleep(PERIOD_S)
    assert settled(served) == [decoded + 1, remembered + 2]
    assert answers[0][0] == answers[1][0]


def test_a_prompt_that_does_not_fit_is_refused_before_its_file_is_decoded(served, picture):
    before = settled(served)
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(served, text_of(as_file(picture, "JPEG", quality=72)), "7" * 1200)
    assert "the prompt has" in caught.value.read().decode()
    assert settled(served) == before


def test_a_file_that_decodes_for_ever_keeps_nobody_waiting(served_demo, picture):
    """Its ten seconds are over before any of its scans is: whoever sends pixels is answered."""
    served = served_demo("instructblip-demo-vicuna")
    bomb = text_of(many_scans(6000, scans=5000))
    with ThreadPoolExecutor(1) as pool, Client(served.url) as client:
        refused = pool.submit(refusal, served, bomb)
        answered = 0
        while not refused.done():
            assert client.ask(picture, PROMPT, max_new_tokens=4).text
            answered += 1
        status, told = refused.result()
    assert answered > 3
    assert (status, "takes more than 10 seconds to be decoded" in told) == (400, True)
    assert ask(served, text_of(picture.read_bytes()))[0]
