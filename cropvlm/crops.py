"""Images and crops: open whatever a data set holds as upright RGB, and cut a box out of it at full resolution."""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cropvlm.boxes import parse_bbox, pct_to_px

# Pillow warns of an image beyond this number of pixels and refuses one of twice as many. Its own 89 million would warn
# at scans of 100 megapixels, which the method is meant for.
Image.MAX_IMAGE_PIXELS = 250_000_000

# What Pillow's decoders raise on broken files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # AVIF
    struct.error,
    Image.DecompressionBombError,
)
# What it raises on broken EXIF data; the pixels are good all the same.
_EXIF_ERRORS = (SyntaxError, ValueError, TypeError, KeyError, struct.error)


MAX_ASPECT_RATIO = 100


class UnreadableImage(ValueError):
    """The source of an image is missing or cannot be decoded."""


def open_image(source: Any) -> Image.Image:
    """Return an image as upright 8-bit RGB that the caller owns, decoded once.

    EXIF orientation is applied. Transparency is laid on white, as Idefics3's and Qwen's own preprocessing does. Grey
    levels of 16 bit, 32 bit or float are scaled to 8 bit, not clipped. Of an animation the first frame counts.

    Args:
        source: PIL image (left as it is), path, encoded bytes, or what `datasets.Image(decode=False)` yields:
            `{"bytes": ..., "path": ...}`.

    Raises:
        UnreadableImage: nothing there, or nothing that Pillow can decode.
    """
    try:
        if isinstance(source, Image.Image):
            image = _to_rgb(_upright(source.copy()))
        else:
            with Image.open(_file(source)) as opened:
                opened.load()
                image = _to_rgb(_upright(opened))
    except _DECODE_ERRORS as error:
        raise _unreadable(error) from error
    if min(image.size) < 1:
        raise UnreadableImage(f"unreadable image: {image.width}x{image.height} px; expected at least 1x1")
    image.info = {}  # orientation and colour profile of the source no longer hold
    return image


def image_size(source: Any) -> tuple[int, int]:
    """Return (width, height) of the upright image that `open_image` would return, from the file's header alone.

    Raises:
        UnreadableImage: nothing there, or nothing whose header Pillow can read.
    """
    try:
        if isinstance(source, Image.Image):
            return _upright_size(source)
        with Image.open(_file(source)) as opened:
            return _upright_size(opened)
    except _DECODE_ERRORS as error:
        raise _unreadable(error) from error


def encoded_image(source: dict[str, Any] | None) -> bytes:
    """The file of an image as `datasets.Image(decode=False)` yields it, bytes or path; empty if there is none to read.

    >>> encoded_image({"bytes": b"GIF89a", "path": "a.gif"})
    b'GIF89a'
    """
    source = source or {}
    if not source.get("bytes") and source.get("path"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: a path with a zero byte
            return Path(source["path"]).read_bytes()
    return source.get("bytes") or b""


def _unreadable(error: Exception) -> UnreadableImage:
    # Pillow's words for an unknown format hold a memory address, which no report should.
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
    return UnreadableImage(f"unreadable image: {reason}; expected a file that Pillow opens")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    with contextlib.suppress(*_EXIF_ERRORS):
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # lying on a side
            return image.height, image.width
    return image.size


def _file(source: Any) -> Path | io.BytesIO:
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        raise ValueError(f"got {type(source).__name__}")
    return Path(source)


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF data do not make the pixels bad; they are turned already if only writing the data back fails.
    with contextlib.suppress(*_EXIF_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale grey levels so that white becomes 255. Modes I and F name no white level: the smallest usual one fits."""
    levels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    white = 65535.0
    if image.mode in ("I", "F"):
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        highest = float(levels.max(initial=0))
        white = next((level for level in usual if highest <= level), highest)
    levels = np.clip(levels * (255 / white), 0, 255)
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def crop_bbox(image: Image.Image, bbox_pct: tuple[float, float, float, float]) -> Image.Image:
    """Cut a valid box (percent) out of `image`: every pixel that it touches, at least one, none outside the image."""
    return image.crop(pct_to_px(bbox_pct, image.width, image.height))


def crop_or_full_image(image: Image.Image, text: str) -> tuple[Image.Image, bool]:
    """Inference: return the crop of the box in `text` and True, or, without a valid box, `image` itself and False."""
    bbox_pct = parse_bbox(text)
    return (image, False) if bbox_pct is None else (crop_bbox(image, bbox_pct), True)


def crop_or_corner(image: Image.Image, text: str) -> Image.Image:
    """Training: return the crop of the box in `text`, or the 2x2 pixels of the top left corner if there is none.

    So a broken box is never rewarded with the whole image.
    """
    bbox_pct = parse_bbox(text)
    if bbox_pct is None:
        return image.crop((0, 0, min(2, image.width), min(2, image.height)))
    return crop_bbox(image, bbox_pct)


def full_and_crop(image: Image.Image, text: str) -> list[Image.Image]:
    """Return `[full image, crop]` as the answerer gets it: the crop of the box in `text`, or `image` again."""
    return [image, crop_or_full_image(image, text)[0]]


def crop_size(size: tuple[int, int], text: str) -> tuple[int, int] | None:
    """Return (width, height) of the crop that the box in `text` cuts out of an image of `size`; None without a box."""
    bbox_pct = parse_bbox(text)
    if bbox_pct is None:
        return None
    left, top, right, bottom = pct_to_px(bbox_pct, *size)
    return right - left, bottom - top


def widen_strip(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with at most 100:1: Qwen2.5-VL refuses 200:1, CLIP's resize of the shorter side would explode."""
    shortest = -(-max(size) // MAX_ASPECT_RATIO)
    return max(size[0], shortest), max(size[1], shortest)
