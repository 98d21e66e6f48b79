"""No image is encoded twice in GRPO: a group's completions share one preprocessing and, in each place, one encoding.

TRL hands every completion its own copy of the image: to the rollouts, to the reference, to the policy. Here the
processor that TRL calls gives out a number in place of an image's pixels, and the model looks the numbers up where it
would encode pixels. All that TRL does between the two (pad, shuffle, split, move) happens to small integers. Gradients
flow through the one encoding as they would through the copies.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.models.batches import encoded_at_once
from cropvlm.models.readers import LevelsReader, ProcessorReader, ReadImage, image_reader
from cropvlm.trainers.images import ReadAhead
from cropvlm.trainers.training_data import open_training_image

# In a PIL image's `info`, which its copies keep.
IDENTITY = "identity"
_identities = itertools.count()


def _identity(image: Image.Image) -> int:
    return image.info.setdefault(IDENTITY, next(_identities))


class SharedImage(Image.Image):
    """An image that stays one where a prompt is copied deeply, as TRL does in every step: nobody changes its pixels."""

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
        self._image_processor = processor
        self._model = self.bind(model)
        self.processor = copy.copy(processor)
        # A plain function: saving the processor copies its attributes deeply, a bound method with all it is bound to.
        self.processor._process_images = lambda images, **kwargs: self.number_images(images)
        self.read_ahead = ReadAhead(self._read)
        self.forget()

    def bind(self, model: Any) -> Any:
        """Let `model` take numbers in place of pixels, for its own encoder; return the part of it that encodes."""
        encoding = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        encoding.get_image_features = functools.partial(self._get_image_features, encoding.get_image_features)
        return encoding

    def forget(self) -> None:
        """Drop all images; numbers given out before become invalid."""
        self._numbers: dict[int, int] = {}  # identity of an image -> its number
        self._placeholders: list[str] = []  # by number: the text that stands for the image in a prompt
        self._tiles: list[Tensor] = []  # by number: (tiles, 1, C, H, W)

    def number_images(self, images: list[list[Image.Image]]) -> tuple[dict[str, Tensor], list[str]]:
        """Preprocess the images not seen before; return the numbers of all, and the texts that stand for them."""
        new = {i: image for row in images for image in row if (i := _identity(image)) not in self._numbers}
        self._number(list(new.values()), [None] * len(new))
        numbers = [[self._numbers[_identity(image)] for image in row] for row in images]
        return {"pixel_values": torch.tensor(numbers)}, [self._placeholders[n] for row in numbers for n in row]

    def open(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Drop the last step's images; return the rows with their images decoded, preprocessed and numbered.

        The rows of a prompt get the same object.
        """
        self.forget()
        read = self.read_ahead.results(rows)
        for image, _ in read.values():
            image.__class__ = SharedImage
        self._number(*zip(*read.values(), strict=True))
        return [{**row, "image": read[row["question_id"]][0]} for row in rows]

    @property
    def _reader(self) -> ProcessorReader | LevelsReader:
        return image_reader(self._image_processor, self._model.device)  # a trainer moves the model once it has both

    def _read(self, source: Any, question_id: Any) -> tuple[Image.Image, ReadImage | None]:
        """Decode an image and read it too, where the reader bears several threads."""
        image = open_training_image(source, question_id)
        return image, self._reader.read(image) if self._reader.in_threads else None

    def _number(self, images: Sequence[Image.Image], read: Sequence[ReadImage | None]) -> None:
        """Give new images their numbers, and make their tiles together. read: what is read already."""
        reader, device = self._reader, self._model.device
        read = [known or reader.read(image) for image, known in zip(images, read, strict=True)]
        self._numbers |= zip(map(_identity, images), itertools.count(len(self._placeholders)))
        self._placeholders += [each.placeholder for each in read]
        for part in encoded_at_once([each.values for each in read], device):
            tiles = reader.tiles([each.tensors for each in read[part]], device)["pixel_values"].to(self._model.dtype)
            self._tiles += tiles.split([each.values // tiles[0].numel() for each in read[part]])

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
