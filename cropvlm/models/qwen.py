"""Images as Qwen2.5-VL sees them: resized by qwen-vl-utils, its authors' own preparation."""

from PIL import Image

from cropvlm.crops import widen_strip

MAX_RATIO = 200  # of the sides that qwen-vl-utils takes


def qwen_size(size: tuple[int, int], min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Return (width, height) at which Qwen2.5-VL sees an image of `size`: multiples of `factor` within the bounds.

    A strip of more than 200:1, which qwen-vl-utils rejects, is first widened to 100:1. The short side of a thin one,
    which it rounds down to nothing where `max_pixels` is small, is one `factor`.

    >>> qwen_size((1023, 681), min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    (1036, 672)
    """
    from qwen_vl_utils import smart_resize  # imports torch and torchvision

    width, height = _accepted(size)
    height, width = smart_resize(height, width, factor, min_pixels, max_pixels)
    return max(width, factor), max(height, factor)


def qwen_image(image: Image.Image, min_pixels: int, max_pixels: int, factor: int = 28) -> Image.Image:
    """Return `image` as `qwen_vl_utils.fetch_image` resizes it: bicubically by Pillow, on white where transparent."""
    from qwen_vl_utils.vision_process import to_rgb

    size, accepted = qwen_size(image.size, min_pixels, max_pixels, factor), _accepted(image.size)
    return to_rgb(image if accepted == image.size else image.resize(accepted)).resize(size)


def _accepted(size: tuple[int, int]) -> tuple[int, int]:
    return size if max(size) <= MAX_RATIO * min(size) else widen_strip(size)
