"""No image is encoded twice in GRPO: a group's completions share one preprocessing and, in each place, one encoding.

TRL hands every completion its own copy of the image: to the rollouts, to the reference, to the policy. Here the
processor that TRL calls gives out a number in place of an image's pixels, and the model looks the numbers up where it
would encode pixels. All that TRL does between the two (pad, shuffle, split, move) happens to small integers. Gradients
flow through the one encoding as they would through the copies.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.encoding import encode_images
from cropvlm.models.batches import encoded_at_once
from cropvlm.models.readers import LevelsReader, ProcessorReader, ReadImage, image_reader
from cropvlm.trainers.images import ReadAhead
from cropvlm.trainers.training_data import open_training_image

NUMBER = "number"  # in a PIL image's `info`, which its copies keep
_numbers = itertools.count()


def _number(image: Image.Image) -> int:
    return image.info.setdefault(NUMBER, next(_numbers))


class SharedImage(Image.Image):
    """An image that deep copies of a prompt, which TRL makes in every step, share: its pixels never change."""

    def __deepcopy__(self, memo: dict) -> Image.Image:
        return self


class SharedImages:
    """Stands between an Idefics3 (or SmolVLM) model and the processor that TRL is given.

    Args:
        model: the policy, with or without PEFT around it. Its `get_image_features` still takes pixels as well.
        processor: the model's processor; it stays as it is.

    Attributes:
        processor: a copy of `processor` whose `pixel_values` are numbers, (prompts, images of a prompt) int64.
        read_ahead: the data collator, which has the images of the next step's rows read while this one runs.
    """

    def __init__(self, model: Any, processor: Any):
        self._pixel_processor = processor
        self._model = self.bind(model)
        self._tiled: dict[int, ReadImage] = {}  # by number, with tiles (tiles, 1, C, H, W) on the device
        self.processor = copy.copy(processor)
        # A plain function: saving the processor copies its attributes deeply, a bound method with all it is bound to.
        self.processor._process_images = lambda images, **kwargs: self.number_images(images)
        self.read_ahead = ReadAhead(self._read)

    def bind(self, model: Any) -> Any:
        """Let `model` take numbers in place of pixels, for its own encoder; return the part of it that encodes."""
        encoding = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        encoding.get_image_features = functools.partial(self._features, encoding, encoding.get_image_features)
        return encoding

    @property
    def _reader(self) -> ProcessorReader | LevelsReader:
        return image_reader(self._pixel_processor, self._model.device)  # a trainer moves the model once it has both

    def _read(self, source: Any, question_id: Any) -> tuple[Image.Image, ReadImage]:
        image = open_training_image(source, question_id)
        return image, self._reader.read(image)

    def open(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Drop the last step's images; return the rows with their images decoded, preprocessed and numbered.

        The rows of a prompt get the same object.
        """
        self._tiled.clear()
        read = self.read_ahead.results(rows)
        for image, _ in read.values():
            image.__class__ = SharedImage
        self._tile({_number(image): levels for image, levels in read.values()})
        return [{**row, "image": read[row["question_id"]][0]} for row in rows]

    def number_images(self, images: list[list[Image.Image]]) -> tuple[dict[str, Tensor], list[str]]:
        """Preprocess the images not seen before; return the numbers of all, and the texts that stand for them."""
        numbers = [[_number(image) for image in row] for row in images]
        new = {_number(image): image for row in images for image in row if _number(image) not in self._tiled}
        self._tile({n: self._reader.read(image) for n, image in new.items()})
        return {"pixel_values": torch.tensor(numbers)}, [self._tiled[n].placeholder for row in numbers for n in row]

    def _tile(self, read: dict[int, ReadImage]) -> None:
        """Make the tiles of new images, by number, together: once for rollouts, reference and policy."""
        numbers, device = list(read), self._model.device
        for part in encoded_at_once([image.values for image in read.values()], device):
            images = [read[n] for n in numbers[part]]
            tiles = self._reader.tiles([image.tensors for image in images], device)["pixel_values"]
            tiles = tiles.to(self._model.dtype).split([image.values // tiles[0].numel() for image in images])
            for n, image, own in zip(numbers[part], images, tiles, strict=True):
                self._tiled[n] = image._replace(tensors={"pixel_values": own})

    def _features(
        self, model: Any, encode: Callable, pixel_values: Tensor, pixel_attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """Encode as a model does; of numbered images each distinct one once, its features placed at every copy."""
        if pixel_values.is_floating_point():
            return encode(pixel_values, pixel_attention_mask, **kwargs)
        numbers = pixel_values.flatten().tolist()
        features = encode_images(model, {n: self._tiled[n] for n in numbers}, ProcessorReader.tiles)
        # A view for each copy: their gradients are summed in the order in which they always were.
        return BaseModelOutputWithPooling(pooler_output=[features[n][:] for n in numbers])
