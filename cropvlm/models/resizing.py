"""Resize 8-bit images as Pillow does, by two matrix products, which brings LANCZOS to a GPU.

torchvision has LANCZOS on the CPU only and silently falls back to bicubic on CUDA. Pillow's resize is separable:
each output column is a weighted sum of input columns, rounded to 8 bits, and each output row one of the rows of that.
Columns come first, as in Pillow up to 12 and in torchvision; Pillow 13 takes the rows first where that is cheaper,
which moves some pixels by a few levels.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from PIL.Image import Resampling
from torch import Tensor


def resize(
    image: Tensor,
    size: tuple[int, int],
    resample: Resampling = Resampling.LANCZOS,
    matrices: Mapping[tuple[int, int], Tensor] | None = None,
) -> Tensor:
    """Image at another size, with Pillow's pixels, up to a level in each product where a sum is near a half.

    image: (..., H, W) uint8, on any device. size: (height, width) wanted. resample: one of `FILTERS`. matrices: those
    of `resize_matrices` that it needs; made here by default. Returns (..., height, width) uint8 on the same device.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"image is {image.dtype}; expected torch.uint8")
    height, width = size
    rows, columns = zip(image.shape[-2:], size, strict=True)  # old and new length
    if matrices is None:
        matrices = resize_matrices({rows, columns}, resample, image.device)
    with exact_products(image.device):
        if width != image.shape[-1]:
            image = _to_levels(image.float() @ matrices[columns].T)
        if height != image.shape[-2]:
            image = _to_levels(matrices[rows] @ image.float())
    return image


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 in float32: bfloat16's 8 bits and TF32's 11 cannot represent half a level."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = before


def _to_levels(values: Tensor) -> Tensor:
    # Pillow adds one half and cuts off; torch.round would take 0.5 to 0.
    return (values + 0.5).floor().clamp(0, 255).to(torch.uint8)


def resize_matrices(
    lengths: Collection[tuple[int, int]], resample: Resampling, device: torch.device
) -> dict[tuple[int, int], Tensor]:
    """Weights of the input pixels in each output pixel, (new_length, length) fp32, for each pair (length, new_length).

    Pairs of equal lengths get none. Shrinking stretches the filter over all the pixels that fall into one. Every row
    sums to 1. All rows are made together: the crops of a GRPO step need hundreds of matrices, each of 25 launches.
    """
    pairs = [(length, new_length) for length, new_length in lengths if length != new_length]
    if not pairs:
        return {}
    weight, support = FILTERS[resample]
    sizes = [new_length for _, new_length in pairs]
    starts = itertools.accumulate(sizes, initial=0)
    described = [(length, length / size, start) for (length, size), start in zip(pairs, starts, strict=False)]
    # (rows of all matrices, 3): nothing here is asked back from the device
    described = torch.tensor(described, dtype=torch.float64).to(device, non_blocking=True)
    repeats = torch.tensor(sizes).to(device, non_blocking=True)
    length, scale, start = described.repeat_interleave(repeats, 0, output_size=sum(sizes)).unbind(1)
    stretch = scale.clamp(min=1.0)
    widest = max(1.0, *(length / size for length, size in pairs))
    taps = int(2 * support * widest) + 2  # of all pixels, sinc would take a quarter of a second at 2048 px
    centre = (torch.arange(sum(sizes), dtype=torch.float64, device=device) - start + 0.5) * scale  # (rows,)
    first = (centre - support * stretch + 0.5).long().clamp(min=0)
    last = torch.minimum((centre + support * stretch + 0.5).long(), length.long())
    pixel = first[:, None] + torch.arange(taps, device=device)  # (rows, taps), beyond the last one in part
    weights = weight((pixel + 0.5 - centre[:, None]) / stretch[:, None]).masked_fill(pixel >= last[:, None], 0)
    weights = (weights / weights.sum(1, keepdim=True)).float()
    longest = max(length for length, _ in pairs)
    rows = torch.zeros(len(pixel), longest + taps, device=device).scatter_(1, pixel, weights)
    return {pair: matrix[:, : pair[0]] for pair, matrix in zip(pairs, rows.split(sizes), strict=True)}


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


def _bicubic(x: Tensor, a: float = -0.5) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


FILTERS: dict[int, tuple[Callable[[Tensor], Tensor], float]] = {  # weight and support of each
    Resampling.LANCZOS: (_lanczos, 3.0),
    Resampling.BICUBIC: (_bicubic, 2.0),
}
