"""Images decoded apart: as the client decodes them, and never for long."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import EngineError, InputError, OptionError
from iblip.export.images import READINGS, ImageLimits, pixels_from_encoded, pixels_from_image
from iblip.serving.decoding.pool import Decoders
from iblip.serving.decoding.process import DecoderProcess
from iblip.serving.decoding.settings import DecodingSettings
from tests.serving.decoding.bombs import huge_png, many_scans
from tests.serving.pictures import encoded, picture

SMALL = Preprocessing(height=32, width=48, resample="BICUBIC")


def turned(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), kind, exif=exif)


def with_alpha():
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


SIXTEEN = Image.fromarray(np.linspace(0, 65535, 2800).astype(np.uint16).reshape(40, 70))
PNG = encoded(picture())
FILES = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "turned": turned("JPEG"),
    "cmyk": encoded(picture().convert("CMYK"), "JPEG"),
    "png": PNG,
    "alpha": encoded(with_alpha()),
    "palette": encoded(picture().quantize(16), transparency=3),
    "sixteen": encoded(SIXTEEN),
    "webp": encoded(with_alpha(), "WEBP"),
    "gif": encoded(
        picture(seed=1).quantize(32), "GIF", save_all=True, append_images=[picture(seed=2)]
    ),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(SIXTEEN, "TIFF"),
}


@pytest.fixture
def process():
    opened = []

    def make(**settings):
        opened.append(DecoderProcess(SMALL, DecodingSettings(**settings)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def usual():
    process = DecoderProcess(SMALL, DecodingSettings())
    yield process
    process.close()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_the_clients_to_the_bit(usual, name, reading):
    expected = pixels_from_image(FILES[name], SMALL, reading)
    np.testing.assert_array_equal(usual.decode(FILES[name], reading), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        base64.b64encode,
        base64.encodebytes,
        lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
        lambda data: b"data:image/png;base64," + base64.b64encode(data),
    ],
)
def test_text_stands_for_the_bytes_in_it(usual, wrap):
    expected = pixels_from_image(PNG, SMALL)
    np.testing.assert_array_equal(usual.decode(wrap(PNG), "viewed"), expected)


REFUSED = {
    b"": "is empty: 0 bytes",
    b"hello, this is text": r"begins with b'hello, this ', as no format does that is read \(JPEG",
    encoded(picture(), "ICO"): "Save it in one of these",
    FILES["jpeg"][:900]: "truncated or damaged",
    PNG[: len(PNG) // 2]: "truncated or damaged",
    huge_png(): "has more than 89478485 pixels, the most accepted",
    b"https://example.org/a.png": "which is not fetched; send the file's bytes",
    b"file:///etc/passwd": "which is not fetched",
    b"/etc/passwd": "begins with b'/etc/passwd'",
    b"data:image/png;base64": "has no comma",
    b"data:image/png;base64,?": "is not base64",
    base64.b64encode(b"%PDF-1.7 and so on, for long"): "begins with b'%PDF-1.7 and'",
}


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: repr(data[:12]))
def test_what_is_refused_says_what_it_is_and_the_process_goes_on(usual, data):
    before = usual._process
    with pytest.raises(InputError, match=REFUSED[data]) as caught:
        usual.decode(data, "viewed")
    assert len(str(caught.value)) < 300
    usual.decode(PNG, "viewed")
    assert usual._process is before or before is None


def test_bytes_and_pixels_have_limits_that_are_named(process):
    small = process(image_bytes=1000, image_pixels=2000)
    with pytest.raises(InputError, match="of 1,001 bytes has more than 1000 bytes"):
        small.decode(b"\xff" * 1001, "viewed")
    with pytest.raises(InputError, match="has 70 x 40 pixels; at most 2000 are accepted"):
        small.decode(encoded(picture(), "JPEG", quality=5), "viewed")
    with pytest.raises(InputError, match=r"no format does that is read \(PNG\)"):
        process(image_formats=("PNG",)).decode(FILES["jpeg"], "viewed")


def test_an_image_that_decodes_for_ever_is_ended_and_the_next_is_decoded(process):
    """A progressive JPEG of 100 kB whose scans go over all its pixels again and again."""
    bomb = many_scans(6000, scans=3000)
    assert len(bomb) < 3_000_000
    decoder = process(image_seconds=1)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"takes more than 1 seconds to be decoded; make it smal"):
        decoder.decode(bomb, "viewed")
    assert time.monotonic() - begun < 30
    decoder.decode(PNG, "viewed")


def test_time_that_is_over_just_as_the_pixels_come_costs_no_other_image(process, monkeypatch):
    class Late(threading.Timer):
        def start(self):
            """Begins with the cancellation, which comes too late."""

        def cancel(self):
            super().start()

    decoder = process(image_seconds=1)
    decoder.decode(PNG, "viewed")
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Timer", Late)
        with pytest.raises(InputError, match="takes more than 1 seconds to be decoded"):
            decoder.decode(PNG, "viewed")
    decoder.decode(PNG, "viewed")


def test_memory_has_a_limit(process):
    """What a decoder allocates is bounded by the pixels that an image may have."""
    decoder = process()
    decoder.decode(PNG, "viewed")
    limits = Path(f"/proc/{decoder._process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max address space"))
    assert 2**30 < int(line.split()[3]) < 4 * 2**30


def test_a_process_that_dies_fails_its_image_alone(process):
    decoder = process()
    decoder.decode(PNG, "viewed")
    os.kill(decoder._process.pid, signal.SIGSEGV)
    with pytest.raises(EngineError, match="ended the process that decodes it"):
        decoder.decode(PNG, "viewed")
    decoder.decode(PNG, "viewed")


def test_closing_does_not_wait_for_an_image(process):
    decoder = process(image_seconds=600)
    decoder.decode(PNG, "viewed")
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(decoder.decode, many_scans(6000, scans=3000), "viewed")
        while not decoder._busy.locked():
            time.sleep(0.001)
        decoder.close()
        with pytest.raises(EngineError, match="the server is stopping"):
            decoding.result(timeout=60)
    with pytest.raises(EngineError, match="the server is stopping"):
        decoder.decode(PNG, "viewed")


def test_a_process_ends_with_its_input(process):
    decoder = process()
    decoder.decode(PNG, "viewed")
    decoder._process.stdin.close()
    assert decoder._process.wait(timeout=30) == 0


class Counted:
    """A decoder that counts; another thread may hold it."""

    def __init__(self, preprocessing, settings):
        self.seen, self.closed = [], False
        self.opened = threading.Event()
        self.opened.set()

    def decode(self, data, reading):
        assert self.opened.wait(10)
        self.seen.append((data, reading))
        return pixels_from_encoded(data, SMALL, reading, ImageLimits())

    def close(self):
        self.closed = True


def test_an_image_that_comes_again_is_not_decoded_again():
    decoders = Decoders(SMALL, DecodingSettings(image_workers=1), Counted)
    (decoder,) = decoders._decoders
    first = decoders.pixels([PNG, FILES["jpeg"]], "viewed")
    second = decoders.pixels([FILES["jpeg"], PNG, PNG], "viewed")
    assert first.shape == (2, 32, 48, 3)
    np.testing.assert_array_equal(second, first[[1, 0, 0]])
    assert len(decoder.seen) == 2
    decoders.pixels([PNG], "lavis")  # other pixels, of some images
    assert len(decoder.seen) == 3
    status = decoders.status()
    assert (status.decoded, status.remembered, status.refused) == (3, 3, 0)


def test_of_several_images_the_bad_one_is_named_and_not_remembered():
    decoders = Decoders(SMALL, DecodingSettings(), Counted)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^image 2 of 3: the image of 4 bytes is not an im"):
            decoders.pixels([PNG, b"text", PNG], "viewed")
    assert decoders.status().refused == 2


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    size = 32 * 48 * 3
    decoders = Decoders(SMALL, DecodingSettings(image_workers=1, image_cache_mib=1), Counted)
    most = (1 << 20) // size
    images = [encoded(picture(seed=seed)) for seed in range(most + 1)]
    decoders.pixels(images[:most], "viewed")
    decoders.pixels(images[:1], "viewed")
    decoders.pixels(images[most:], "viewed")
    before = decoders.status().decoded
    decoders.pixels(images[:1], "viewed")
    assert decoders.status().decoded == before
    decoders.pixels(images[1:2], "viewed")
    assert decoders.status().decoded == before + 1


def test_nothing_is_remembered_where_nothing_may_be():
    decoders = Decoders(SMALL, DecodingSettings(image_cache_mib=0), Counted)
    for _ in range(3):
        decoders.pixels([PNG], "viewed")
    assert decoders.status().decoded == 3


def test_several_are_decoded_at_the_same_time_and_no_more():
    decoders = Decoders(SMALL, DecodingSettings(image_workers=2, image_cache_mib=0), Counted)
    for decoder in decoders._decoders:
        decoder.opened.clear()
    threads = [threading.Thread(target=decoders.pixels, args=([PNG], "viewed")) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while decoders._free.qsize():
        assert time.monotonic() < end
    for decoder in decoders._decoders:
        decoder.opened.set()
    for thread in threads:
        thread.join(10)
    assert decoders.status().decoded == 3
    decoders.close()
    assert all(decoder.closed for decoder in decoders._decoders)


def test_the_operators_parameters_are_read():
    given = {"image_bytes": "5", "image_formats": "jpeg  png", "threads": "0"}
    settings = DecodingSettings.from_parameters(given)
    assert settings == DecodingSettings(image_bytes=5, image_formats=("JPEG", "PNG"))
    assert DecodingSettings.from_parameters({}) == DecodingSettings()
    assert 1 <= DecodingSettings().workers <= 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_bytes", "much", "image_bytes is 'much' in config.pbtxt; expected an integer"),
        ("image_seconds", "0", "image_seconds is 0; expected 1 or more"),
        ("image_workers", "100000", r"image_workers is 100000; expected 0 .* to 64"),
        ("image_workers", "-1", "image_workers is '-1' in config.pbtxt; expected an integer"),
        ("image_formats", " ", "image_formats is empty"),
    ],
)
def test_a_parameter_that_is_none_is_named(name, value, message):
    with pytest.raises(OptionError, match=message):
        DecodingSettings.from_parameters({name: value})
