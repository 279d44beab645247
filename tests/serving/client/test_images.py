"""Images, from wherever they come, as a model's pixels."""

from __future__ import annotations

import base64
import io
import os
import pickle
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from iblip.export.artifact.manifest import Preprocessing
from iblip.export.errors import InputError, OptionError
from iblip.export.images import MAX_PIXELS, check_reading, each_image, pixels_from_image
from iblip.serving.client import Client
from iblip.serving.client.base import Asked
from iblip.serving.wire.contract import ServerContract
from tests.serving.decoding.bombs import huge_png
from tests.serving.pictures import encoded, picture

SMALL = Preprocessing(height=48, width=48, resample="BICUBIC")


def plain(image):
    return np.asarray(image.convert("RGB").resize((48, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_path_bytes_a_pillow_image_and_an_array_are_the_same_pixels(tmp_path, kind):
    data = encoded(picture(), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    expected = plain(decoded)
    for source in (path, str(path), data, decoded, np.asarray(decoded)):
        pixels = pixels_from_image(source, SMALL)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, expected)


def transparent_palette():
    image = picture().quantize(16)
    image.info["transparency"] = 3
    return image


def with_alpha():
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(
    "image",
    [
        picture(),
        picture(9, 200),
        picture(48, 48),
        picture(1, 1),
        picture().convert("L"),
        picture().convert("1"),
        picture().quantize(16),
        transparent_palette(),
        with_alpha(),
        with_alpha().convert("LA"),
        picture().convert("CMYK"),
        picture().convert("YCbCr"),
    ],
    ids=lambda image: f"{image.mode}-{image.width}x{image.height}",
)
def test_pixels_equal_transformers_bit_for_bit(image):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(
        size={"height": 48, "width": 48}, do_rescale=False, do_normalize=False
    )
    theirs = processor(image, return_tensors="np")["pixel_values"][0]  # [3, height, width]
    ours = pixels_from_image(image, SMALL)
    np.testing.assert_array_equal(ours, np.transpose(theirs, (1, 2, 0)).astype(np.uint8))


def test_height_and_width_are_not_confused():
    tall = Preprocessing(height=20, width=10, resample="BICUBIC")
    assert pixels_from_image(picture(), tall).shape == (20, 10, 3)


def test_the_filter_is_the_contracts():
    nearest = Preprocessing(height=48, width=48, resample="NEAREST")
    assert (pixels_from_image(picture(), nearest) != pixels_from_image(picture(), SMALL)).any()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    pixels = pixels_from_image(encoded(Image.fromarray(ramp)), SMALL)
    np.testing.assert_array_equal(pixels[..., 0], ramp >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright, "PNG", exif=exif)
    seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels_from_image(data, SMALL), plain(seen))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "JPEG", exif=exif)


SIXTEEN = Image.fromarray(np.linspace(0, 65535, 70 * 40).astype(np.uint16).reshape(40, 70))


@pytest.mark.parametrize(
    "data",
    [
        turned(),
        encoded(with_alpha()),
        encoded(transparent_palette()),
        encoded(with_alpha().convert("LA")),
        encoded(SIXTEEN),
        encoded(SIXTEEN, "TIFF"),
        encoded(Image.fromarray(np.linspace(-9, 400, 2800, dtype=np.float32)[None]), "TIFF"),
    ],
    ids=["exif", "alpha", "palette", "grey-alpha", "16-bit", "16-bit-tiff", "float"],
)
def test_lavis_reads_what_pillow_converts_and_no_more(data, request):
    """LAVIS's examples: `Image.open(path).convert("RGB")`."""
    opened = Image.open(io.BytesIO(data))
    found = pixels_from_image(data, SMALL, "lavis")
    np.testing.assert_array_equal(found, plain(opened))
    np.testing.assert_array_equal(pixels_from_image(opened, SMALL, "lavis"), found)
    if "float" in request.node.callspec.id:
        return  # which is refused otherwise
    assert (pixels_from_image(data, SMALL) != found).any()


def test_an_unknown_way_to_read_images_is_told():
    with pytest.raises(OptionError, match=r"preprocessing is 'lavs'; expected 'viewed' or 'lavis'"):
        check_reading("lavs")
    with pytest.raises(OptionError, match="preprocessing is 'hf'"):
        Client(preprocessing="hf")


def test_a_client_reads_images_as_it_was_told(make_build):
    contract = ServerContract.from_manifest(make_build()[1])
    data = turned()
    question = Asked(
        image=data, prompt="What?", options={}, compat=None, priority="interactive", timeout=None
    )
    wanted = pixels_from_image(data, contract.preprocessing, "lavis").tobytes()
    assert wanted != pixels_from_image(data, contract.preprocessing).tobytes()
    with Client(preprocessing="lavis") as client:
        for one in (client, pickle.loads(pickle.dumps(client))):
            request, _ = one._request(question, contract, stream=False)
            assert request.raw_input_contents[0] == wanted


def test_of_an_animation_the_first_frame_is_taken():
    first, second = picture(seed=1).quantize(32), picture(seed=2).quantize(32)
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(
        pixels_from_image(data, SMALL), plain(Image.open(io.BytesIO(data)))
    )


JPEG = encoded(picture(200, 200), "JPEG")
PNG = encoded(picture(200, 200))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "is empty: 0 bytes"),
        (b"hello, this is text", "not an image that Pillow can read"),
        (JPEG[: len(JPEG) // 2], "truncated or damaged"),
        (PNG[: len(PNG) // 2], "truncated or damaged"),
        (PNG[:12], "is not an image|is damaged|truncated"),
        (encoded(picture(), "EPS"), "is PostScript, which is not run"),
        (huge_png(), f"more than {MAX_PIXELS} pixels"),
        ("no/such/file.png", "there is no file no/such/file.png"),
        ("https://example.org/a.png", "is an address; download it first"),
        ("bad\0name", "cannot be read"),
        (".", "cannot be read: Is a directory"),
        (Image.new("RGB", (0, 7)), "is empty: 0 x 7 pixels"),
        (Image.new("F", (4, 4)), "floating-point"),
        (np.zeros((8, 8, 3), np.float32), r"is float32 .*Floats from 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), r"is int64 \[8, 8, 3\]; expected uint8"),
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\]; expected uint8 \[height, width, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"shape \[1, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "is empty"),
        (None, "an image cannot be None"),
        (io.StringIO("x"), 'is opened as text; open it with mode "rb"'),
        (io.BytesIO(), r"is empty: 0 bytes .*seek\(0\)"),
        ("data:image/png", "has no comma"),
        ("data:image/png;base64,?", "is not base64"),
        ("data:text/plain,hello", "not an image that Pillow can read"),
        ("file://elsewhere/a.png", "is on another machine"),
        ("file:///no/such.png", "there is no file /no/such.png"),
        (base64.b64encode(PNG[: len(PNG) // 2]).decode(), "given in base64 is truncated"),
        ("A" * 3_000_000, r"^A{80}… \(3,000,000 characters\) cannot be read: File name too long"),
        ("data:image/png;base64," + "A" * 3_000_000, "not an image that Pillow can read"),
        ("/dev/zero", "is a device, a pipe or a socket; give a file, or the bytes"),
    ],
)
def test_what_cannot_be_used_is_said(source, message):
    with pytest.raises(InputError, match=message) as caught:
        pixels_from_image(source, SMALL)
    assert len(str(caught.value)) < 300


def tensor(image):
    return torch.from_numpy(np.array(image))  # [height, width, 3]


def test_a_tensor_is_as_its_array():
    image = picture()
    hwc = tensor(image)
    chw = hwc.permute(2, 0, 1)
    expected = plain(image)
    for source in (hwc, chw, chw.contiguous(), torch.nn.Parameter(chw, requires_grad=False)):
        np.testing.assert_array_equal(pixels_from_image(source, SMALL), expected)
    for batch in (torch.stack([hwc, hwc]), torch.stack([chw, chw])):
        images = each_image(batch)
        assert len(images) == 2
        np.testing.assert_array_equal(pixels_from_image(images[1], SMALL), expected)
    assert len(each_image([hwc, chw])) == 2
    assert len(each_image(chw)) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((3, 8, 8), "float32", r"is torch\.float32 \[3, 8, 8\]; .*\(tensor \* 255\).*normalised"),
        ((3, 8, 8), "bfloat16", r"is torch\.bfloat16"),
        (
            (8, 8, 3),
            "int64",
            r"is torch\.int64 \[8, 8, 3\]; expected torch",
        ),
        ((8, 8), "uint8", r"\[8, 8\]; expected torch\.uint8 .*or several of them in a batch"),
        ((4, 8, 8), "uint8", r"\[4, 8, 8\]"),
        ((1, 1, 3, 8, 8), "uint8", r"\[1, 1, 3, 8, 8\]"),
        ((3, 0, 8), "uint8", "is empty"),
    ],
)
def test_a_tensor_that_is_no_image_is_said(shape, dtype, message):
    source = torch.zeros(shape, dtype=getattr(torch, dtype))
    with pytest.raises(InputError, match=message):
        pixels_from_image(source, SMALL)
    with pytest.raises(InputError, match=message):
        _ = [pixels_from_image(image, SMALL) for image in each_image(source)]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for source in (tmp_path / "pipe.png", str(tmp_path / "pipe.png")):
        with pytest.raises(InputError, match="is a device, a pipe or a socket; give a file"):
            pixels_from_image(source, SMALL)


def test_an_upload_that_is_read_with_await_is_said():
    class Upload:
        async def read(self, size=-1):
            return PNG

    with pytest.raises(InputError, match=r"is read with await; give what `await file\.read\(\)`"):
        pixels_from_image(Upload(), SMALL)


def test_a_file_without_an_end_is_read_no_further_than_the_limit(monkeypatch):
    monkeypatch.setattr("iblip.export.images.MAX_BYTES", 10)
    with pytest.raises(InputError, match="has more than 10 bytes, the most accepted"):
        pixels_from_image(io.BytesIO(b"x" * 1000), SMALL)


@pytest.mark.parametrize(
    "give",
    [
        io.BytesIO,
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
        lambda data: "data:image/png;base64," + quote(base64.b64encode(data).decode()),
        lambda data: "data:image/png," + quote(data),
    ],
)
def test_an_image_in_any_wrapping_is_the_same(give):
    expected = pixels_from_image(PNG, SMALL)
    np.testing.assert_array_equal(pixels_from_image(give(PNG), SMALL), expected)


def test_a_file_by_its_address(tmp_path):
    path = tmp_path / "a é b.png"
    path.write_bytes(PNG)
    for address in (path.as_uri(), path.as_uri().replace("file://", "file://localhost")):
        expected = pixels_from_image(path, SMALL)
        np.testing.assert_array_equal(pixels_from_image(address, SMALL), expected)


def test_a_picture_just_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("iblip.export.images.MAX_PIXELS", 70 * 40 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="has 70 x 40 pixels; at most 2799 are"):
        pixels_from_image(encoded_once, SMALL)


encoded_once = encoded(picture())
