"""The matrix resize against Pillow's own, level by level."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling

from cropvlm.models import resizing
from cropvlm.models.resizing import FILTERS, resize


def pillow_resize(pixels: np.ndarray, size: tuple[int, int], resample: Resampling) -> np.ndarray:
    """Columns first, then rows. pixels: (H, W, 3) uint8. size: (height, width)."""
    columns = Image.fromarray(pixels).resize((size[1], len(pixels)), resample)
    return np.asarray(columns.resize(size[::-1], resample))


def difference(shape: tuple[int, int], size: tuple[int, int], resample: Resampling, seed: int = 0) -> np.ndarray:
    """Levels between ours and Pillow's on noise, which is the hardest case: every sum is of unrelated pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = resize(torch.from_numpy(pixels).permute(2, 0, 1), size, resample).permute(1, 2, 0).numpy()
    return np.abs(ours.astype(int) - pillow_resize(pixels, size, resample).astype(int))


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(
    ("shape", "size"), [((768, 1024), (384, 512)), ((20, 2000), (6, 512))]
)  # a photograph, a strip
def test_the_levels_are_pillows(shape, size, resample):
    levels = difference(shape, size, resample)
    assert levels.max() <= 1
    assert (levels > 0).mean() < 1e-3


@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from([*FILTERS]),
)
@example((4, 32), (23, 80), Resampling.BICUBIC)  # a level off in the columns becomes two in the rows
def test_any_size_to_any_size(shape, size, resample):
    assert difference(shape, size, resample).max() <= 2


def test_the_levels_are_pillows_under_autocast():
    """A trainer measures its crops there; in bfloat16 two of three levels would be others."""
    with torch.autocast("cpu", torch.bfloat16):
        assert (difference((300, 400), (96, 120), Resampling.LANCZOS) > 0).mean() < 1e-3


def test_tf32_does_not_reach_the_products(monkeypatch):
    """`--tf32 True` sets it for the whole process; it is as before afterwards."""
    precisions, rounded = [], resizing._to_levels
    matmul = torch.backends.cuda.matmul
    note = lambda *args: precisions.append(matmul.fp32_precision) or rounded(*args)  # noqa: E731
    monkeypatch.setattr(resizing, "_to_levels", note)
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        resize(torch.zeros(3, 8, 8, dtype=torch.uint8), (4, 4))
        assert (precisions, matmul.fp32_precision) == (["ieee"] * 2, "tf32")
    finally:
        torch.backends.fp32_precision = matmul.fp32_precision = before
