"""Images as Qwen2.5-VL sees them: resized by qwen-vl-utils, its authors' own preparation."""

from PIL import Image

from cropvlm.crops import widen_strip


def qwen_size(size: tuple[int, int], min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Return (width, height) at which Qwen2.5-VL sees an image of `size`: multiples of `factor` within the bounds.

    A strip of more than 100:1 is first widened to that; qwen-vl-utils rejects 200:1, and rounds the short side of a
    thin strip down to nothing where `max_pixels` is small.

    >>> qwen_size((1023, 681), min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    (1036, 672)
    """
    from qwen_vl_utils import smart_resize  # imports torch and torchvision

    width, height = widen_strip(size)
    height, width = smart_resize(height, width, factor, min_pixels, max_pixels)
    return max(width, factor), max(height, factor)


def qwen_image(image: Image.Image, min_pixels: int, max_pixels: int, factor: int = 28) -> Image.Image:
    """Return `image` as `qwen_vl_utils.fetch_image` resizes it: bicubically by Pillow, on white where transparent."""
    from qwen_vl_utils.vision_process import to_rgb

    size, wide = qwen_size(image.size, min_pixels, max_pixels, factor), widen_strip(image.size)
    return to_rgb(image if wide == image.size else image.resize(wide)).resize(size)
