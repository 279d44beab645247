"""Images in terminals that show them, read back as such a terminal would."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from iblip.serving.cli.picture import show_image

KITTY = {"TERM": "xterm-kitty", "TERM_PROGRAM": ""}
ITERM = {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}
FOOT = {"TERM": "foot", "TERM_PROGRAM": ""}


@pytest.fixture
def image():
    """Four quarters, red, green, blue and white, 40 by 28."""
    pixels = np.zeros((28, 40, 3), np.uint8)
    pixels[:14, :20, 0] = pixels[:14, 20:, 1] = pixels[14:, :20, 2] = 255
    pixels[14:, 20:] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def show(image, tmp_path, monkeypatch):
    """What `show_image` writes to a terminal with these variables."""
    path = tmp_path / "picture.png"
    image.save(path)

    def call(variables, source=path, terminal=True):
        for name, value in ({"TMUX": None} | variables).items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdout", stream)
        show_image(source)
        monkeypatch.undo()
        return stream.getvalue()

    return call


def same(data, image):
    return (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == np.asarray(image)).all()


def test_kitty_and_iterm_get_a_png(show, image):
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", show(KITTY))
    assert pieces[0][0].startswith("a=T,f=100")
    assert pieces[-1][0].endswith("m=0")
    assert same("".join(data for _, data in pieces), image)
    (data,) = re.findall(r"\x1b\]1337;File=inline=1:([^\a]*)\a", show(ITERM))
    assert same(data, image)


def test_a_large_image_is_sent_to_kitty_in_pieces(show, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", show(KITTY, tmp_path / "noise.png"))
    assert len(pieces) > 1
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in pieces)
    data = base64.b64decode("".join(data for _, data in pieces))
    assert max(Image.open(io.BytesIO(data)).size) == 320


def pixels_from_sixels(text):
    """Draws what a sixel sequence says."""
    (width, height, body) = re.fullmatch(
        r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', text, re.DOTALL
    ).groups()
    pixels = np.full((int(height), int(width), 3), -1)
    palette, colour, x, top = {}, None, 0, 0
    for define, values, choose, control, sixel in re.findall(
        r"#(\d+);2;([\d;]+)|#(\d+)|([-$])|([?-~])", body
    ):
        if define:
            palette[define] = [round(int(value) * 2.55) for value in values.split(";")]
        elif choose:
            colour = palette[choose]
        elif control:
            x, top = 0, top + (6 if control == "-" else 0)
        else:
            for bit in range(6):
                if (ord(sixel) - 63) >> bit & 1:
                    pixels[top + bit, x] = colour
            x += 1
    return pixels


def test_others_get_sixels(show, image):
    drawn = pixels_from_sixels(show(FOOT))
    assert np.abs(drawn - np.asarray(image, int)).max() <= 8


@pytest.mark.parametrize(
    ("variables", "terminal"),
    [
        ({"TERM": "xterm-256color", "TERM_PROGRAM": ""}, True),
        ({**KITTY, "TMUX": "default,1,0"}, True),
        (KITTY, False),
    ],
)
def test_nothing_is_shown_elsewhere(show, variables, terminal):
    assert show(variables, terminal=terminal) == ""


def test_what_is_no_image_is_left_to_who_asks(show, image):
    assert show(KITTY, b"not an image") == ""
    file = io.BytesIO()
    image.save(file, "PNG")
    assert show(KITTY, file.getvalue()).startswith("\x1b_G")
