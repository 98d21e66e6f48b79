"""Readers of images, one for a model's processor and device.

A `ReadImage` moves between processes. Its tiles are made on the model's device, either as the processor cut them or
from the image's 8-bit levels; no other module depends on which.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from cropvlm.crops import widened
from cropvlm.models.cores import cpu_count
from cropvlm.models.qwen import budget_of, qwen_image
from cropvlm.models.tiling import DeviceTiling, plan_of, tiling_of

FEW_IMAGES = 4  # up to which threads gain nothing


class ReadImage(NamedTuple):
    """Image as returned by its reader."""

    key: bytes  # the same for equal pixels
    placeholder: str  # its text in a prompt
    tokens: int  # in a prompt
    values: int  # of its pixel_values
    tensors: dict[str, Tensor]  # along dimension 0 (tiles, ...) or (patches, ...); or `levels`, (H, W, 3) uint8


def image_reader(
    processor: Any, device: torch.device, dtype: torch.dtype | None = None
) -> "ProcessorReader | LevelsReader":
    """Return the reader of images for a model on `device`.

    dtype: that of the model. Pixels are cast to it before they are moved, as the model itself would do later.
    """
    tiling = tiling_of(processor, device)
    return ProcessorReader(processor, dtype) if tiling is None else LevelsReader(processor, tiling)


class ProcessorReader:
    """Reads an image with the model's own processor, which cuts its tiles: on a CPU, and for families without tiles."""

    def __init__(self, processor: Any, dtype: torch.dtype | None = None):
        self.processor, self.dtype = processor, dtype

    def read(self, image: Image.Image) -> ReadImage:
        """Return `image` with the processor's tensors."""
        image_processor = self.processor.image_processor
        options = getattr(self.processor, "images_kwargs", {}) | {"return_tensors": "pt"}
        key = image_key(np.asarray(image))
        if hasattr(image_processor, "merge_size"):  # Qwen2.5-VL
            image = qwen_image(image, *budget_of(image_processor))
            options["do_resize"] = False
        else:
            image = widened(image)
        # Not by calling the processor, which would tokenize: its tokenizer does not bear several threads.
        inputs, (placeholder,) = self.processor._process_images([[image]], **options)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        pixels = tensors["pixel_values"]
        pixels = pixels if self.dtype is None else pixels.to(self.dtype)
        if pixels.ndim == 5:
            # Idefics3: (1, tiles, C, H, W) -> (tiles, 1, C, H, W), so that images of any tile count can be joined.
            pixels = pixels.transpose(0, 1)
            # The mask of its full tiles is all ones; the model assumes it.
            tensors.pop("pixel_attention_mask", None)
        tensors["pixel_values"] = pixels
        tokens = placeholder.count(self.processor.image_token)
        return ReadImage(key, placeholder, tokens, pixels.numel(), tensors)

    @staticmethod
    def tiles(images: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of all images in a row, on the device."""
        names = images[0]
        return {name: torch.cat([image[name].to(device, non_blocking=True) for image in images]) for name in names}


class LevelsReader:
    """Reads an image as its 8-bit levels, from which a GPU cuts the tiles: fewer bytes to transfer."""

    def __init__(self, processor: Any, tiling: DeviceTiling):
        self.processor, self.tiling = processor, tiling
        self.tiles = tiling.tiles

    def read(self, image: Image.Image) -> ReadImage:
        """Return `image` with its levels, shrunk as by the processor if it is larger than the model sees it."""
        levels = np.array(widened(image))  # (H, W, 3) uint8
        if max(image.size) > (edge := self.tiling.size["longest_edge"]):
            own, channels_first = self.processor.image_processor, levels.transpose(2, 0, 1)
            given = channels_first if isinstance(own, PilBackend) else torch.from_numpy(channels_first)
            shrunk = own.resize(given, SizeDict(longest_edge=edge), resample=own.resample)  # (3, H, W)
            levels = np.ascontiguousarray(np.asarray(shrunk).transpose(1, 2, 0))
        rows, columns = plan_of(self.tiling, (levels.shape[1], levels.shape[0]))[0]
        placeholder = self.processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
        tokens = placeholder.count(self.processor.image_token)
        values = (rows * columns + 1) * self.tiling.tile_values  # and the whole image
        return ReadImage(image_key(levels), placeholder, tokens, values, {"levels": torch.from_numpy(levels)})


def read_all(reader: ProcessorReader | LevelsReader, images: Sequence[Image.Image]) -> list[ReadImage]:
    """Return all `images` read, in order; in threads, for GRPO's rewards."""
    if len(images) <= FEW_IMAGES:  # a worker's single row
        return list(map(reader.read, images))
    with ThreadPoolExecutor(cpu_count()) as threads:
        return list(threads.map(reader.read, images))


def image_key(levels: np.ndarray) -> bytes:
    """Hash of the pixels, 16 bytes. levels: (H, W, 3) uint8."""
    return xxhash.xxh3_128_digest(str(levels.shape).encode() + levels.data)
