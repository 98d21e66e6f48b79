"""Open the images of data sets, in any form, as upright 8-bit RGB: the one place that decodes an image."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from cropvlm.errors import UnreadableImage, one_line, shorten

# In RGBA, such an image takes 2 GB to open; the method is meant for scans of 100 megapixels.
MAX_PIXELS = 250_000_000
# Pillow warns above this number of pixels and refuses twice as many, from the header alone.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow refuses a PNG with more text or a larger colour profile than 1 MB. The pixels are good all the same.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20

MAX_FILE_BYTES = 1 << 30
STRIP_PIXELS = 1 << 24  # converted at a time, which bounds the memory of the steps


def open_image(source: Any) -> Image.Image:
    """Return an image as upright 8-bit RGB that the caller owns, decoded once.

    EXIF orientation is applied. Transparency is laid on white, as Idefics3's and Qwen's own preprocessing does. Grey
    levels of 16 bit, 32 bit or float are scaled to 8 bit, not clipped. Of an animation the first frame counts.

    Args:
        source: PIL image (left as it is), path, encoded bytes, or what `datasets.Image(decode=False)` yields:
            `{"bytes": ..., "path": ...}`.

    Raises `UnreadableImage` where there is nothing, or nothing that Pillow can decode.
    """
    with _opened(source) as opened:
        opened.load()
        image = opened.copy() if opened is source else opened
        with contextlib.suppress(Exception):  # broken EXIF data do not make the pixels bad
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        if min(image.size) < 1:
            raise ValueError(f"{image.width}x{image.height} px")
        return image


def image_size(source: Any) -> tuple[int, int]:
    """Return (width, height) of the upright image that `open_image` would return, from the file's header alone.

    Raises `UnreadableImage` where there is nothing, or nothing whose header Pillow can read.
    """
    with _opened(source) as opened:
        orientation = 1
        with contextlib.suppress(Exception):
            orientation = opened.getexif().get(ExifTags.Base.Orientation)
        # Pillow swaps the sides of a TIFF when it reads the header.
        lies_on_a_side = orientation in range(5, 9) and opened.format != "TIFF"
        return opened.size[::-1] if lies_on_a_side else opened.size


def encoded_image(source: dict[str, Any] | None) -> bytes:
    """The file of an image as `datasets.Image(decode=False)` yields it, bytes or path; empty without an image.

    >>> encoded_image({"bytes": b"GIF89a", "path": "a.gif"})
    b'GIF89a'
    """
    try:
        file = _file(source)
        return file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except (OSError, ValueError):
        return b""


@contextlib.contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    """A PIL image as it is, or the image whose header Pillow reads; any error on the way is an `UnreadableImage`."""
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with Image.open(_file(source)) as opened:
            if opened.format == "EPS":  # a program, which another one would have to run
                raise ValueError("PostScript")
            yield opened
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds
        # Pillow's words for an unknown format hold a memory address, which no report should.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise UnreadableImage(f"unreadable image: {reason}; expected a file that Pillow opens") from error


def _file(source: Any) -> Path | io.BytesIO:
    """The file or bytes for Pillow to open. Only a regular file is read: a pipe or a device may never end."""
    if isinstance(source, dict):
        encoded = source.get("bytes")
        source = source.get("path") if encoded is None else encoded
    if not isinstance(source, bytes | str | Path) or source == b"":
        raise ValueError("no bytes and no path")
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if "://" in str(source):
        raise ValueError(f"{shorten(str(source))} is a URL, which is not downloaded")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"no such file: {shorten(str(source))}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"a file of more than {MAX_FILE_BYTES >> 20} MB")
    return path


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new image in 8-bit RGB, without the source's metadata, which no longer hold."""
    is_transparent = image.has_transparency_data  # fails for a palette image that has lost its palette
    if image.mode == "RGB" and not is_transparent:
        rgb = image.copy()
        rgb.info = {}
        return rgb
    white = _white_level(image)
    rgb = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        if white is not None:
            strip = Image.fromarray(np.rint(np.clip(_levels(strip) * (255 / white), 0, 255)).astype(np.uint8))
        if is_transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb.paste(strip.convert("RGB"), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Strips of the image's full width, each with its first row."""
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _white_level(image: Image.Image) -> float | None:
    """The grey level that becomes 255; None for modes of 8 bit.

    Modes I and F name no white level: the smallest usual one that fits, else the highest level there is.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return None
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    highest = max((float(_levels(strip).max(initial=0)) for strip, _ in _strips(image)), default=0.0)
    return next((level for level in usual if highest <= level), highest)


def _levels(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
