"""No image is encoded twice in GRPO: a group's completions share one preprocessing and, in each place, one encoding.

TRL hands every completion its own copy of the image: to the rollouts, to the reference, to the policy. Here the
processor that TRL calls gives out a number in place of an image's pixels, and the model looks the numbers up where it
would encode pixels. All that TRL does between the two (pad, shuffle, split, move) happens to small integers. Gradients
flow through the one encoding as they would through the copies.
"""

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.encoding import encoded_at_once, process_image, read_levels
from cropvlm.models.tiling import cut_tiles, tiling_of
from cropvlm.training.rows import open_training_image


class SharedImages:
    """Stands between an Idefics3 (or SmolVLM) model and the processor that TRL is given.

    Args:
        model: the policy, with or without PEFT around it. Its `get_image_features` still takes pixels as well.
        processor: the model's processor; it stays as it is.

    Attributes:
        processor: a copy of `processor` whose `pixel_values` are numbers, (prompts, images of a prompt) int64.
    """

    def __init__(self, model: Any, processor: Any):
        self._image_processor = processor
        self._model = self.bind(model)
        self.processor = copy.copy(processor)
        # A plain function: saving the processor copies its attributes deeply, a bound method with all it is bound to.
        self.processor._process_images = lambda images, **kwargs: self.number_images(images)
        self.forget()

    def bind(self, model: Any) -> Any:
        """Let `model` take numbers in place of pixels, for its own encoder; return the part of it that encodes."""
        encoding = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        encoding.get_image_features = functools.partial(self._get_image_features, encoding.get_image_features)
        return encoding

    def forget(self) -> None:
        """Drop all images; numbers given out before become invalid."""
        self._images: list[Image.Image] = []  # kept, so that an id() stays that of one image
        self._numbers: dict[int, int] = {}  # id of an image -> its number
        self._placeholders: list[str] = []  # by number: the text that stands for the image in a prompt
        self._tiles: list[Tensor] = []  # by number: (tiles, 1, C, H, W)

    def number_images(self, images: list[list[Image.Image]]) -> tuple[dict[str, Tensor], list[str]]:
        """Preprocess the images not seen before; return the numbers of all, and the texts that stand for them."""
        numbers = [[self._number(image) for image in row] for row in images]
        return {"pixel_values": torch.tensor(numbers)}, [self._placeholders[n] for row in numbers for n in row]

    def _number(self, image: Image.Image) -> int:
        if id(image) not in self._numbers:
            placeholder, tiles = self._preprocess(image)
            self._numbers[id(image)] = len(self._images)
            self._images.append(image)
            self._placeholders.append(placeholder)
            self._tiles.append(tiles)
        return self._numbers[id(image)]

    def _preprocess(self, image: Image.Image) -> tuple[str, Tensor]:
        """The text that stands for an image, and its tiles on the model's device, cut there if that is a GPU."""
        processor, device, dtype = self._image_processor, self._model.device, self._model.dtype
        tiling = tiling_of(processor, device)
        if tiling is None:
            placeholder, tensors = process_image(processor, image, dtype)
            return placeholder, tensors["pixel_values"].to(device)
        placeholder, tensors = read_levels(processor, image, tiling)
        return placeholder, cut_tiles(tiling, tensors["levels"].to(device), tensors["size"][0].tolist()).to(dtype)

    def _get_image_features(
        self, encode: Callable, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Encode as a model does; of numbered images each distinct one once, its features placed at every copy."""
        if pixel_values.is_floating_point():
            return encode(pixel_values, pixel_attention_mask, **kwargs)
        numbers = pixel_values.flatten().tolist()
        distinct = list(dict.fromkeys(numbers))
        features: dict[int, Tensor] = {}
        for part in encoded_at_once([self._tiles[n].numel() for n in distinct], self._model.device):
            tiles = [self._tiles[n] for n in distinct[part]]
            encoded = torch.stack(list(encode(torch.cat(tiles), **kwargs).pooler_output))  # (tiles, tokens of one, D)
            features |= zip(distinct[part], encoded.split([len(each) for each in tiles]), strict=True)
        return BaseModelOutputWithPooling(pooler_output=[features[n].flatten(0, 1) for n in numbers])


def open_images(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decode the images of a step's rows, several at a time, each once: a prompt's rows get the same object."""
    sources = {row["question_id"]: row["image"] for row in inputs}
    with ThreadPoolExecutor() as pool:
        images = dict(zip(sources, pool.map(open_training_image, sources.values(), sources), strict=True))
    return [{**row, "image": images[row["question_id"]]} for row in inputs]
