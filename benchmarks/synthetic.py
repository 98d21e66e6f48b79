"""Synthetic images for the benchmarks: smooth noise as JPEG, small on disk, not in memory."""

from io import BytesIO

import numpy as np
from PIL import Image

SIZES = ((1024, 768), (768, 1024))  # about TextVQA's, across and upright


def jpeg(
    noise: np.random.Generator, size: tuple[int, int], grid: tuple[int, int] = (24, 32), quality: int = 90
) -> bytes:
    """An image of `size` (width, height) pixels, blown up from `grid` (rows, columns) of random colours."""
    blots = Image.fromarray(noise.integers(0, 256, (*grid, 3), dtype=np.uint8))
    file = BytesIO()
    blots.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


def photos(number: int) -> list[bytes]:
    """JPEGs of 0.5 to 1.3 of 1024x768 a side, upright and across in turn."""
    noise = np.random.default_rng(42)
    sizes = (tuple(int(side * noise.uniform(0.5, 1.3)) for side in SIZES[i % 2]) for i in range(number))
    return [jpeg(noise, size) for size in sizes]
