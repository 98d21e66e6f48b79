"""SmolVLM's tiles cut on the model's device from 8-bit images: the image is sent to a GPU, not its tiles.

At 2048 px an image of 1024x768 becomes 17 tiles of 512x512, 26 MB in bfloat16; its own levels are 2 MB. And LANCZOS on
one core takes longer than the vision encoder does on a GPU.
"""

import functools
import itertools
import json
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import SizeDict
from transformers.models.idefics3.image_processing_idefics3 import (
    Idefics3ImageProcessor,
    get_resize_output_image_size,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from cropvlm.models.resizing import FILTERS, resize, resize_matrices

# Settings of an image processor that determine its tiles.
SETTINGS = ("size", "max_image_size", "image_mean", "image_std", "resample", "rescale_factor", "do_image_splitting")

# Those of the images that this thread is cutting.
_MATRICES: ContextVar[dict[tuple[int, int], Tensor] | None] = ContextVar("matrices", default=None)


class DeviceTiling(Idefics3ImageProcessor):
    """Idefics3's image processor, resizing on the image's own device; on `meta` it computes only the sizes."""

    def resize(self, image: Tensor, size: SizeDict, resample: Any = None, **kwargs: Any) -> Tensor:
        """Return the image (..., H, W) at the size that Idefics3's own method would give it."""
        if size.longest_edge:
            height, width = get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        else:
            height, width = size.height, size.width
        if image.is_meta:
            return image.new_empty((*image.shape[:-2], height, width))
        return resize(image, (height, width), self.resample, _MATRICES.get())

    @property
    def tile_values(self) -> int:
        """Number of values in a tile's pixels."""
        return 3 * self.max_image_size["longest_edge"] ** 2

    def tiles(self, images: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Return the tiles of all images in order, cut on the device. images: `levels` of each, (H, W, 3) uint8."""
        return {"pixel_values": cut_tiles(self, [image["levels"].to(device, non_blocking=True) for image in images])}

    def __reduce__(self) -> tuple:
        """Unpickled from a worker, it is the same object: its mean and deviation are already on the GPU."""
        return _tiling, (self.settings,)


def tiling_of(processor: Any, device: torch.device) -> DeviceTiling | None:
    """Return the tiling on `device`; None if the processor cuts the tiles: on a CPU, where torchvision's LANCZOS is
    faster, and for other families and filters. Transformers resizes with PIL where torchvision lacks LANCZOS.
    """
    own = processor.image_processor
    known = type(own) in (Idefics3ImageProcessor, Idefics3ImageProcessorPil) and own.resample in FILTERS
    if device.type == "cpu" or not known:
        return None
    return _tiling(json.dumps({name: getattr(own, name) for name in SETTINGS}, default=dict))


@functools.lru_cache
def _tiling(settings: str) -> DeviceTiling:
    tiling = DeviceTiling(do_pad=False, **json.loads(settings))  # tiles are all of one size
    tiling.settings = settings
    return tiling


@functools.lru_cache(maxsize=4096)
def plan_of(tiling: DeviceTiling, size: tuple[int, int]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """(rows, columns) of an image of `size` (width, height) in tiles, and the (length, new length) of its resizes.

    (0, 0) if it is a single tile.
    """
    image, grid = torch.empty((1, 3, size[1], size[0]), dtype=torch.uint8, device="meta"), (0, 0)
    edge = tiling.max_image_size["longest_edge"]
    stages = [image, tiling.resize(image, SizeDict(longest_edge=tiling.size["longest_edge"]))]
    if tiling.do_image_splitting:
        stages.append(tiling.resize_for_vision_encoder(stages[-1], edge))
        _, rows, columns = tiling.split_images(stages[-1], tiling.max_image_size)
        grid = rows[0], columns[0]
    shapes = [*(stage.shape[-2:] for stage in stages), (edge, edge)]  # the last is the whole image in one tile
    return grid, [sides for shape, new in itertools.pairwise(shapes) for sides in zip(shape, new, strict=True)]


def cut_tiles(tiling: DeviceTiling, images: list[Tensor]) -> Tensor:
    """Return the normalised tiles of all `images`, (tiles, 1, 3, T, T) float32, on the images' device.

    images: 8-bit levels, (H, W, 3) uint8 each, of any sizes.
    """
    lengths = {sides for image in images for sides in plan_of(tiling, (image.shape[1], image.shape[0]))[1]}
    mine = _MATRICES.set(resize_matrices(lengths, tiling.resample, images[0].device))
    try:
        channels_first = [image.permute(2, 0, 1) for image in images]
        pixels = tiling([channels_first], do_convert_rgb=False, return_tensors="pt")["pixel_values"]
    finally:
        _MATRICES.reset(mine)
    return pixels.transpose(0, 1)  # from (1, tiles, 3, T, T)
