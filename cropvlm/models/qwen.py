"""Images as Qwen2.5-VL sees them: resized by qwen-vl-utils, its authors' own preparation."""

from typing import Any, NamedTuple

from PIL import Image

from cropvlm.crops import widen_strip
from cropvlm.errors import UserError

MAX_RATIO = 200  # of the sides that qwen-vl-utils takes


class PixelBudget(NamedTuple):
    """Minimum and maximum pixels of an image as seen by Qwen2.5-VL, and the factor of which its sides are multiples.

    `qwen_size(size, *budget)` is the size that it sees. Each side is mapped back on its own, so boxes stay exact.
    """

    min_pixels: int = 56 * 56  # Qwen2.5-VL's own
    max_pixels: int = 28 * 28 * 16384
    factor: int = 28

    def within(self, min_pixels: int | None, max_pixels: int | None) -> "PixelBudget":
        """Return a copy with the given bounds. Raises `UserError` if no image fits."""
        least = self.min_pixels if min_pixels is None else min_pixels
        most = self.max_pixels if max_pixels is None else max_pixels
        smallest = max(least, self.factor**2)
        if smallest > most:
            told = f"images of at least {smallest} and at most {most} pixels do not exist"
            raise UserError(f"{told}; change --min_pixels and --max_pixels")
        return PixelBudget(least, most, self.factor)


def budget_of(image_processor: Any) -> PixelBudget:
    """Return the budget of an image processor."""
    size = image_processor.size
    return PixelBudget(
        size["shortest_edge"], size["longest_edge"], image_processor.patch_size * image_processor.merge_size
    )


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
