"""Every kind of image becomes upright RGB, or is unreadable."""

import io
import os
import zlib

import numpy as np
import pytest
from pictures import GREEN, RED, WHITE, checkered, pixels
from PIL import Image, PngImagePlugin

from cropvlm.crops import crop_bbox
from cropvlm.data.images import encoded_image, image_size, open_image
from cropvlm.errors import UnreadableImage


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_every_source_opens_to_the_same_pixels(tmp_path):
    path = tmp_path / "image.png"
    checkered().save(path)
    encoded = path.read_bytes()
    in_data_set = [{"bytes": encoded, "path": "a name, and no file"}, {"bytes": None, "path": str(path)}]
    for source in (checkered(), path, str(path), encoded, *in_data_set):
        image = open_image(source)
        assert image.mode == "RGB"
        assert pixels(image) == pixels(checkered())


def test_pil_source_is_left_as_it_is():
    source = Image.open(io.BytesIO(encode(checkered(), exif=orientation(6))))
    opened = open_image(source)
    opened.paste(WHITE, (0, 0, 2, 3))
    assert source.size == (3, 2)
    assert pixels(source) == pixels(checkered())
    assert source.getexif()[0x0112] == 6


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


UPRIGHT = {
    4: lambda array: array[::-1],  # mirrored upside down
    5: lambda array: array.transpose(1, 0, 2),  # first row is the left side, from the top
    8: lambda array: array.transpose(1, 0, 2)[::-1],  # first row is the left side, from the bottom
}


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(value, format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(checkered(), format, exif=orientation(value), **options)
    image = open_image(data)
    assert image_size(data) == image.size
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[value](np.asarray(checkered())))
    again = open_image(image)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        pytest.param(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), WHITE, id="transparent shows white"),
        # 100 * 51/255 + 255 * 204/255 = 20 + 204
        pytest.param(Image.new("RGBA", (1, 1), (100, 100, 100, 51)), (224, 224, 224), id="a fifth opaque"),
        # 16 bit: v / 257
        pytest.param(Image.new("I;16", (1, 1), 255), (1, 1, 1), id="16 bit, nearly black"),
        pytest.param(Image.new("I", (1, 1), 200), (200, 200, 200), id="32 bit holding 8"),
        pytest.param(Image.new("I", (1, 1), 10**6), WHITE, id="32 bit: the highest is white"),
        pytest.param(Image.new("F", (1, 1), 0.2), (51, 51, 51), id="float up to 1"),
        pytest.param(Image.new("F", (1, 1), float("nan")), (0, 0, 0), id="not a number is black"),
    ],
)
def test_every_mode_becomes_8_bit_rgb(image, pixel):
    assert pixels(open_image(image)) == [pixel]


@pytest.mark.filterwarnings("error")  # Pillow's warning of a decompression bomb would fail this
def test_files_that_pillow_alone_would_refuse_or_show_otherwise():
    scan = open_image(encode(Image.new("1", (10_000, 10_000), 1)))
    assert crop_bbox(scan, (50, 50, 51, 52)).size == (100, 200)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    assert pixels(open_image(encode(checkered(), pnginfo=info))) == pixels(checkered())
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    animation = open_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert set(pixels(animation)) == {RED}  # still whole after its file is closed
    palette = checkered().quantize(6)
    shown = pixels(open_image(encode(palette, transparency=palette.getpixel((0, 0)))))
    assert shown == [WHITE, *pixels(palette.convert("RGB"))[1:]]  # the transparent index is white


def test_more_pixels_than_memory_holds():
    chunks = [b"IHDR" + (15_900).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]), b"IDAT"]  # 253 megapixels
    parts = [(len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    for read in (open_image, image_size):
        with pytest.raises(UnreadableImage, match="252810000 pixels.* limit of 250000000"):
            read(data)


@pytest.mark.parametrize("raised", [MemoryError(), TypeError("x" * 10**6)])
def test_whatever_a_decoder_raises_is_an_unreadable_image(monkeypatch, raised):
    def fail(*_):
        raise raised

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UnreadableImage, match="unreadable image: .{,300}; expected") as caught:
        open_image(encode(checkered()))
    assert caught.value.__cause__ is raised


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "https://example.com/a.png", "x" * 5000):
        for source in (path, {"bytes": None, "path": str(path)}):
            with pytest.raises(UnreadableImage, match="unreadable image: .{,300}; expected"):
                open_image(source)
        assert encoded_image(source) == b""


def test_unreadable_images():
    cut_off = encode(Image.effect_noise((64, 64), 50))[:2000]
    with pytest.raises(UnreadableImage, match="PostScript"):  # which another program would draw
        open_image(encode(checkered(), "EPS"))
    for source in (None, "no/such/file.png", cut_off, Image.new("RGB", (0, 5))):
        with pytest.raises(UnreadableImage, match="unreadable image: .*; expected") as caught:
            open_image(source)
        assert "0x7" not in str(caught.value)  # no address of an object: the same image is reported in the same words
