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

# Pillow refuses twice as many pixels, which take 2 GB as RGBA, and warns above this number: scans have 100 megapixels.
Image.MAX_IMAGE_PIXELS = 125_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow rejects a PNG with more than 1 MB of text or colour profile, although its pixels are fine.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20


def open_image(source: Any) -> Image.Image:
    """Return an image as a new upright 8-bit RGB image; of an animation, the first frame.

    EXIF orientation is applied. Transparency is laid on white, as Idefics3's and Qwen's own preprocessing does. Grey
    levels of 16 bit, 32 bit or float are scaled to 8 bit, not clipped.

    source: PIL image (left as it is), path, encoded bytes, or `{"bytes": ..., "path": ...}`, as
    `datasets.Image(decode=False)` yields it. Raises `UnreadableImage` if Pillow cannot decode it.
    """
    with _opened(source) as opened:
        opened.load()
        image = opened.copy() if opened is source else opened
        with contextlib.suppress(Exception):  # the pixels are fine without valid EXIF data
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        if min(image.size) < 1:
            raise ValueError(f"{image.width}x{image.height} px")
        return image


def image_size(source: Any) -> tuple[int, int]:
    """Return (width, height) of the image that `open_image` would return, from the file's header alone."""
    with _opened(source) as opened:
        orientation = 1
        with contextlib.suppress(Exception):
            orientation = opened.getexif().get(ExifTags.Base.Orientation)
        # Pillow swaps the sides of a TIFF when it reads the header.
        lies_on_a_side = orientation in range(5, 9) and opened.format != "TIFF"
        return opened.size[::-1] if lies_on_a_side else opened.size


def encoded_image(source: dict[str, Any] | None) -> bytes:
    """Encoded bytes of an image as `datasets.Image(decode=False)` yields it; empty without an image."""
    with contextlib.suppress(OSError, ValueError):
        file = _file(source)
        return file.read_bytes() if isinstance(file, Path) else file.getvalue()
    return b""


@contextlib.contextmanager
def _opened(source: Any) -> Iterator[Image.Image]:
    """PIL image, or the file that Pillow opens; any error, also in the caller's block, becomes `UnreadableImage`."""
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with Image.open(_file(source)) as opened:
            if opened.format == "EPS":  # a program, which Ghostscript would run
                raise ValueError("PostScript")
            yield opened
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds
        # Pillow's own message contains a memory address, which differs between runs.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise UnreadableImage(f"unreadable image: {reason}; expected a file that Pillow opens") from error


def _file(source: Any) -> Path | io.BytesIO:
    """File or bytes for Pillow to open. Only a regular file is read: a pipe or a device may never end."""
    if isinstance(source, dict):
        encoded = source.get("bytes")
        source = source.get("path") if encoded is None else encoded
    if not isinstance(source, bytes | str | Path) or source == b"":
        raise ValueError("no bytes and no path")
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if "://" in str(source):
        raise ValueError(f"{shorten(str(source))} is a URL, which is not downloaded")
    if not Path(source).is_file():
        raise ValueError(f"no such file: {shorten(str(source))}")
    return Path(source)


def _to_rgb(image: Image.Image) -> Image.Image:
    """New image in 8-bit RGB, without the source's metadata, which no longer apply."""
    is_transparent = image.has_transparency_data  # fails for a palette image that has lost its palette
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_levels(image)
    if is_transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}
    return rgb


def _grey_levels(image: Image.Image) -> Image.Image:
    """Grey levels scaled to 8 bit, in place since a scan is large.

    Modes I and F have no defined white: the smallest of the usual levels that fits, else the highest that occurs.
    """
    levels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    highest = float(levels.max(initial=0))
    usual = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    levels *= 255 / next((level for level in usual if highest <= level), highest)
    return Image.fromarray(np.rint(levels.clip(0, 255, out=levels), out=levels).astype(np.uint8))
