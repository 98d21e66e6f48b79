"""Prompts and images to model inputs: every distinct image of a batch is encoded once.

The answers with and without the crop share the full image, so do a group's six crops in training, and benchmarks ask
several questions about one image (TextVQA 1.6 of them, DocVQA 4, HR-Bench 4). An image is known by its pixels here:
it goes through the vision encoder once, and its features are then placed wherever a prompt of the batch shows it.
transformers takes such features as `mm_encoder_outputs`, in `forward` as in `generate`, for SmolVLM (Idefics3), LLaVA
and Qwen2.5-VL alike.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.models.batches import encoded_at_once
from cropvlm.models.readers import LevelsReader, ProcessorReader, ReadImage, read_all
from cropvlm.prompts import Messages, Prompt, without_placeholders


@dataclass
class Prepared:
    """Prompts as token ids, beside their distinct images. Moves between processes; not yet padded."""

    input_ids: list[list[int]]  # per prompt
    shown: list[list[bytes]]  # per prompt: the key of the image at each of its placeholders
    images: dict[bytes, ReadImage]  # by key
    tiles: Callable[..., dict[str, Tensor]]  # of the reader: makes the model's pixels of the images' tensors

    def pin_memory(self) -> "Prepared":
        """Return the same with page-locked images, which a DataLoader asks for: they are copied to a GPU meanwhile."""
        pinned = {
            key: image._replace(tensors={name: tensor.pin_memory() for name, tensor in image.tensors.items()})
            for key, image in self.images.items()
        }
        return replace(self, images=pinned)


def prepare(
    processor: Any,
    prompts: list[Prompt],
    dtype: torch.dtype | None = None,
    reader: ProcessorReader | LevelsReader | None = None,
) -> Prepared:
    """Tokenize `prompts` with the processor's chat template and read each image once.

    reader: as `image_reader` makes it; by default the processor's, which casts pixels to `dtype`.
    """
    reader = reader or ProcessorReader(processor, dtype)
    objects = {id(image): image for _, images in prompts for image in images}
    read = dict(zip(objects, read_all(reader, list(objects.values())), strict=True))
    rows = [[read[id(image)] for image in images] for _, images in prompts]
    texts, _ = processor.get_text_with_replacements(
        [chat_text(processor, messages) for messages, _ in prompts],
        images_replacements=[image.placeholder for row in rows for image in row],
    )
    distinct = list(dict.fromkeys(texts))  # crops that take as many tokens leave a group's prompts alike
    input_ids = dict(zip(distinct, processor.tokenizer(distinct)["input_ids"], strict=True))
    return Prepared(
        input_ids=[input_ids[text] for text in texts],
        shown=[[image.key for image in row] for row in rows],
        images={image.key: image for image in read.values()},
        tiles=reader.tiles,
    )


def chat_text(processor: Any, messages: Messages) -> str:
    """The text of `messages` up to where the model writes. A question cannot smuggle in an image placeholder."""
    cleaned = without_placeholders(messages, processor.image_token)
    return processor.apply_chat_template(cleaned, add_generation_prompt=True)


def merge(parts: list[Prepared]) -> Prepared:
    """One `Prepared` with the prompts of all `parts`, in order, and each image once, though several parts show it."""
    return Prepared(
        input_ids=[ids for part in parts for ids in part.input_ids],
        shown=[keys for part in parts for keys in part.shown],
        images={key: image for part in parts for key, image in part.images.items()},
        tiles=parts[0].tiles,
    )


def model_inputs(model: Any, prepared: Prepared, pad_token_id: int) -> dict[str, Any]:
    """Keyword arguments for `model(...)` and `model.generate(...)`, padded on the left, images encoded.

    Each distinct image is encoded once. Gradients flow through the features.
    """
    prompts = [torch.tensor(ids) for ids in prepared.input_ids]
    input_ids = pad_sequence(prompts, batch_first=True, padding_value=pad_token_id, padding_side="left")  # (B, L)
    mask = pad_sequence(list(map(torch.ones_like, prompts)), batch_first=True, padding_side="left")  # (B, L)
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    inputs = {name: ids.to(model.device, non_blocking=True) for name, ids in inputs.items()}
    shown = [key for keys in prepared.shown for key in keys]
    if not shown:  # a text alone, as a chat may be
        return inputs
    features = encode_images(model, prepared.images, prepared.tiles)
    # Not `pixel_values`: the model would encode those itself, a shared image once per prompt. One entry for each
    # placeholder, in order; the same tensor may stand at several.
    inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=[features[key] for key in shown])}
    grids = [prepared.images[key].tensors.get("image_grid_thw") for key in shown]
    if grids[0] is not None:  # Qwen2.5-VL computes its 3D positions from these two
        inputs["image_grid_thw"] = torch.cat(grids).to(model.device)  # (images shown, 3)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()  # (B, L)
    return inputs


def encode_images(model: Any, images: dict[Any, ReadImage], tiles: Callable) -> dict[Any, Tensor]:
    """The features of each image, (tokens, D), by the same keys. tiles: of the images' reader."""
    accepted = inspect.signature(model.get_image_features).parameters
    keys, images = list(images), list(images.values())
    features = []
    for part in encoded_at_once([image.values for image in images], model.device):
        inputs = tiles([image.tensors for image in images[part]], model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        inputs = {name: value for name, value in inputs.items() if name in accepted}
        features += model.get_image_features(**inputs, return_dict=True).pooler_output
    # One entry a tile (Idefics3) or an image: joined and cut again, each image gets its own. (tokens of all, D)
    tokens = [image.tokens for image in images]
    return dict(zip(keys, torch.cat(features).split(tokens), strict=True))
