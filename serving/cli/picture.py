"""Shows an image in a terminal that can: by kitty's protocol, iTerm2's, or sixel graphics."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SIDE = 320
"""Most pixels of height and width: about twenty lines of text."""

COLOURS = 64
"""Of an image in sixels, which has a palette."""


def show_image(source: Any) -> None:
    """Shows an image on stdout; nothing where stdout is no terminal, or one that cannot.

    Args:
        source: a path, or an image file's bytes.
    """
    protocol = _protocol(os.environ) if sys.stdout.isatty() else None
    if protocol is None:
        return
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return  # whoever asks about it says what is wrong with it
    image.thumbnail((SIDE, SIDE))
    sys.stdout.write(protocol(image) + "\n")
    sys.stdout.flush()


def _protocol(environment: Mapping[str, str]) -> Callable[[Any], str] | None:
    """How the terminal draws, from the variables that it sets; `None` where it is not known to."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None  # it would swallow the image
    if term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return _kitty
    if program in ("iTerm.app", "WezTerm"):
        return _iterm
    if term.startswith(("foot", "mlterm", "contour")):
        return _sixel
    return None


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _kitty(image: Any) -> str:
    """Source: sw.kovidgoyal.net/kitty/graphics-protocol: a PNG (f=100) in pieces of 4,096."""
    data = _png(image)
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    keys = [f"a=T,f=100,q=2,m={int(len(pieces) > 1)}"]
    keys += [f"m={int(number < len(pieces) - 1)}" for number in range(1, len(pieces))]
    return "".join(f"\x1b_G{key};{piece}\x1b\\" for key, piece in zip(keys, pieces, strict=True))


def _iterm(image: Any) -> str:
    """Source: iterm2.com/documentation-images.html."""
    return f"\x1b]1337;File=inline=1:{_png(image)}\a"


def _sixel(image: Any) -> str:
    """Source: DEC's VT330/VT340 manual, chapter 14: six rows a band, one colour after another."""
    picture = image.quantize(COLOURS)
    palette = picture.getpalette()
    used = sorted(index for _, index in picture.getcolors(COLOURS))
    colours = "".join(
        "#{};2;{};{};{}".format(index, *(value * 100 // 255 for value in palette[index * 3 :][:3]))
        for index in used
    )
    bands = "-".join(_bands(picture))
    return f'\x1bPq"1;1;{picture.width};{picture.height}{colours}{bands}\x1b\\'


def _bands(picture: Any) -> Iterator[str]:
    pixels = picture.load()
    for top in range(0, picture.height, 6):
        rows = range(top, min(top + 6, picture.height))
        columns = [[pixels[x, y] for y in rows] for x in range(picture.width)]
        yield "$".join(
            f"#{colour}" + "".join(_sixel_of(column, colour) for column in columns)
            for colour in sorted({value for column in columns for value in column})
        )


def _sixel_of(column: list[int], colour: int) -> str:
    """The character whose six bits say which of a column's pixels have the colour."""
    return chr(63 + sum(1 << bit for bit, value in enumerate(column) if value == colour))
