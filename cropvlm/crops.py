"""Crops: cut a box out of an image at full resolution, with the two fallbacks for a broken box."""

from PIL import Image

from cropvlm.boxes import is_not_needed, parse_bbox, pct_to_px

MAX_ASPECT_RATIO = 100


def crop_bbox(image: Image.Image, bbox_pct: tuple[float, float, float, float]) -> Image.Image:
    """Cut a valid box (percent) out of `image`: every pixel that it touches, at least one, none outside the image."""
    return image.crop(pct_to_px(bbox_pct, image.width, image.height))


def crop_or_full_image(image: Image.Image, text: str) -> tuple[Image.Image, bool]:
    """Inference: return the crop of the box in `text` and True, or, without a valid box, `image` itself and False."""
    bbox_pct = parse_bbox(text)
    return (image, False) if bbox_pct is None else (crop_bbox(image, bbox_pct), True)


def crop_or_corner(image: Image.Image, text: str) -> Image.Image:
    """Training: return the crop of the box in `text`, or the top left corner (2x2 pixels) without a valid box.

    So a broken box is never rewarded with the whole image.
    """
    bbox_pct = parse_bbox(text)
    if bbox_pct is None:
        return image.crop((0, 0, min(2, image.width), min(2, image.height)))
    return crop_bbox(image, bbox_pct)


def full_and_crop(image: Image.Image, text: str) -> list[Image.Image]:
    """Return what the answerer gets: `[full image, crop]`, `image` twice for an invalid box, once for `Not needed.`"""
    return [image] if is_not_needed(text) else [image, crop_or_full_image(image, text)[0]]


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


def widened(image: Image.Image) -> Image.Image:
    """Return the image itself, or a thin strip made 100:1."""
    size = widen_strip(image.size)
    return image if size == image.size else image.resize(size)
