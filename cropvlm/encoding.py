"""Prompts and images to model inputs: every distinct image of a batch is encoded once.

The answers with and without the crop share the full image, so do a group's six crops in training, and benchmarks ask
several questions about one image (TextVQA 1.6 of them, DocVQA 4, HR-Bench 4). An image is known by its pixels here:
it goes through the vision encoder once, and its features are then placed wherever a prompt of the batch shows it.
transformers takes such features as `mm_encoder_outputs`, in `forward` as in `generate`, for SmolVLM (Idefics3), LLaVA
and Qwen2.5-VL alike.
"""

import functools
import hashlib
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.crops import widen_strip
from cropvlm.models.qwen import qwen_image
from cropvlm.models.tiling import DeviceTiling, cut_tiles
from cropvlm.prompts import Prompt

# Values of pixel_values in one call of the vision encoder, in tiles of SmolVLM. 64 fill a GPU. A batch of 64 rows at
# 2048 px has 2,000; encoded at once, each of its activations (2,000 x 1,024 x 3,072) would take 12 GiB in bf16. A CPU's
# caches are best used by one.
TILE = 3 * 512 * 512
ENCODED_AT_ONCE = {"cuda": 64 * TILE, "cpu": TILE}
FEW_IMAGES = 4  # up to which threads gain nothing

END_OF_UTTERANCE = "<end_of_utterance>"


@dataclass
class Prepared:
    """Prompts as token ids, beside their distinct images as tensors. Moves between processes; not yet padded."""

    input_ids: list[list[int]]  # per prompt
    image_index: list[list[int]]  # per prompt: which image stands at each of its placeholders
    image_keys: list[bytes]  # per image: equal for equal pixels
    image_tokens: list[int]  # per image: how many tokens it takes in a prompt
    image_rows: dict[str, list[int]]  # per tensor of `images` and image: how long its part along dimension 0 is
    images: dict[str, Tensor]  # the image processor's output, (tiles, ...) or (patches, ...) along dimension 0
    tiling: DeviceTiling | None = None  # how tiles are still to be cut: `images` then holds `levels` and `size`

    def pin_memory(self) -> "Prepared":
        """Return the same with page-locked images, which a DataLoader asks for: they are copied to a GPU meanwhile."""
        return replace(self, images={name: tensor.pin_memory() for name, tensor in self.images.items()})


def prepare(
    processor: Any,
    prompts: list[Prompt],
    dtype: torch.dtype | None = None,
    tiling: DeviceTiling | None = None,
) -> Prepared:
    """Tokenize `prompts` with the processor's chat template and preprocess each distinct image once.

    dtype: that of the model; pixels are cast to it here, as the model itself would do later.
    tiling: leaves the images as 8-bit levels, whose tiles `model_inputs` cuts on the model's device.
    """
    objects = {id(image): image for _, images in prompts for image in images}
    read = functools.partial(process_image, processor, dtype=dtype)
    if tiling is not None:
        read = functools.partial(read_levels, processor, tiling=tiling)
    with ThreadPoolExecutor() as threads:  # for GRPO's rewards; a worker's single row starts none
        each = threads.map if tiling is not None and len(objects) > FEW_IMAGES else map
        keys = dict(zip(objects, each(image_key, objects.values()), strict=True))
        distinct = {keys[identity]: image for identity, image in objects.items()}
        processed = list(each(read, distinct.values()))
    position = {key: i for i, key in enumerate(distinct)}
    placeholders, tensors = zip(*processed, strict=True)
    index = [[position[keys[id(image)]] for image in images] for _, images in prompts]
    texts, _ = processor.get_text_with_replacements(
        [chat_text(processor, messages) for messages, _ in prompts],
        images_replacements=[placeholders[i] for row in index for i in row],
    )
    return Prepared(
        input_ids=processor.tokenizer(texts)["input_ids"],
        image_index=index,
        image_keys=list(distinct),
        image_tokens=[text.count(processor.image_token) for text in placeholders],
        image_rows={name: [len(each[name]) for each in tensors] for name in tensors[0]},
        images={name: torch.cat([each[name] for each in tensors]) for name in tensors[0]},
        tiling=tiling,
    )


def image_key(image: Image.Image) -> bytes:
    """The same 16 bytes for images of the same pixels."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def chat_text(processor: Any, messages: list[dict[str, Any]]) -> str:
    """The text of `messages` up to where the model writes. A question cannot smuggle in an image placeholder."""
    cleaned = without_placeholders(messages, processor.image_token)
    return processor.apply_chat_template(cleaned, add_generation_prompt=True)


def without_placeholders(messages: list[dict[str, Any]], image_token: str) -> list[dict[str, Any]]:
    """`messages` without `image_token` in their texts, where it would stand for an image that is not there."""
    return [
        {**message, "content": [_without(image_token, part) for part in message["content"]]} for message in messages
    ]


def drop_token(text: str, token: str) -> str:
    """`text` without `token`, also where leaving one out would join the halves of another."""
    while token in text:
        text = text.replace(token, "")
    return text


def merge(parts: list[Prepared]) -> Prepared:
    """One `Prepared` with the prompts of all `parts`, in order, and each image once, though several parts show it."""
    position: dict[bytes, int] = {}
    kept = []  # (tokens, tensors by name) of each image
    for part in parts:
        names = part.images.keys()
        tensors = zip(*(part.images[name].split(part.image_rows[name]) for name in names), strict=True)
        for key, tokens, own in zip(part.image_keys, part.image_tokens, tensors, strict=True):
            if key not in position:
                position[key] = len(kept)
                kept.append((tokens, dict(zip(names, own, strict=True))))
    names = parts[0].images.keys()
    return Prepared(
        input_ids=[ids for part in parts for ids in part.input_ids],
        image_index=[[position[part.image_keys[i]] for i in row] for part in parts for row in part.image_index],
        image_keys=list(position),
        image_tokens=[tokens for tokens, _ in kept],
        image_rows={name: [len(tensors[name]) for _, tensors in kept] for name in names},
        images={name: torch.cat([tensors[name] for _, tensors in kept]) for name in names},
        tiling=parts[0].tiling,
    )


def model_inputs(model: Any, prepared: Prepared, pad_token_id: int) -> dict[str, Any]:
    """Keyword arguments for `model(...)` and `model.generate(...)`, padded on the left, images encoded.

    Each distinct image is encoded once. Gradients flow through the features.
    """
    longest = max(map(len, prepared.input_ids))
    padding = [longest - len(ids) for ids in prepared.input_ids]
    pairs = list(zip(prepared.input_ids, padding, strict=True))
    input_ids = torch.tensor([[pad_token_id] * n + ids for ids, n in pairs], device=model.device)  # (B, L)
    mask = torch.tensor([[0] * n + [1] * len(ids) for ids, n in pairs], device=model.device)  # (B, L)
    order = [i for row in prepared.image_index for i in row]
    features = encode_images(model, prepared)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[features[i] for i in order])},
    }
    if "image_grid_thw" in prepared.images:  # Qwen2.5-VL computes its 3D positions from these two
        inputs["image_grid_thw"] = prepared.images["image_grid_thw"][order].to(model.device)
        inputs["mm_token_type_ids"] = (input_ids == model.config.image_token_id).int()
    return inputs


def encode_images(model: Any, prepared: Prepared) -> list[Tensor]:
    """The features of each distinct image, (image_tokens, D) each."""
    accepted = inspect.signature(model.get_image_features).parameters
    features = []
    for part in _portions(prepared, model.device):
        images = {k: v.to(model.device, non_blocking=True) for k, v in part.items() if k in accepted}
        images["pixel_values"] = images["pixel_values"].to(model.dtype)  # tiles that were cut here
        features += model.get_image_features(**images, return_dict=True).pooler_output
    return list(torch.cat(features).split(prepared.image_tokens))


def _portions(prepared: Prepared, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The images' tensors, whole images together, as many at a time as the vision encoder takes at once."""
    if prepared.tiling is not None:
        yield from _cut_portions(prepared, device)
        return
    values = [rows * prepared.images["pixel_values"][0].numel() for rows in prepared.image_rows["pixel_values"]]
    for part in encoded_at_once(values, device):
        yield {
            name: tensor[sum(prepared.image_rows[name][: part.start]) : sum(prepared.image_rows[name][: part.stop])]
            for name, tensor in prepared.images.items()
        }


def _cut_portions(prepared: Prepared, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The same for images whose tiles are cut here, on the device."""
    sizes = prepared.images["size"].tolist()
    levels = prepared.images["levels"].split(prepared.image_rows["levels"])
    for part in encoded_at_once([prepared.tiling.values_of(size) for size in sizes], device):
        images = zip(levels[part], sizes[part], strict=True)
        tiles = [cut_tiles(prepared.tiling, each.to(device, non_blocking=True), size) for each, size in images]
        yield {"pixel_values": torch.cat(tiles)}


def encoded_at_once(values: list[int], device: torch.device) -> Iterator[slice]:
    """Cut images of so many `values` of pixel_values each into the runs that one call of the vision encoder takes."""
    most = ENCODED_AT_ONCE.get(device.type, ENCODED_AT_ONCE["cuda"])
    start = 0
    while start < len(values):
        stop = start + 1
        while stop < len(values) and sum(values[start : stop + 1]) <= most:
            stop += 1
        yield slice(start, stop)
        start = stop


def process_image(processor: Any, image: Image.Image, dtype: torch.dtype | None) -> tuple[str, dict[str, Tensor]]:
    """Return the text that stands for `image` in a prompt, and its tensors."""
    image_processor, options = processor.image_processor, {"return_tensors": "pt"}
    if hasattr(image_processor, "merge_size"):  # Qwen2.5-VL
        size, factor = image_processor.size, image_processor.patch_size * image_processor.merge_size
        image = qwen_image(image, size["shortest_edge"], size["longest_edge"], factor)
        options["do_resize"] = False
    elif (size := widen_strip(image.size)) != image.size:
        image = image.resize(size)
    inputs = processor(
        text=[processor.image_token],
        images=[[image]],
        return_text_replacement_offsets=True,
        images_kwargs=options,
    )
    placeholder = inputs["text_replacement_offsets"][0][0]["replacement"]
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    if dtype is not None:
        tensors["pixel_values"] = tensors["pixel_values"].to(dtype)
    if tensors["pixel_values"].ndim == 5:
        # Idefics3: (1, tiles, C, H, W) -> (tiles, 1, C, H, W), so that images of any tile count can be joined.
        tensors["pixel_values"] = tensors["pixel_values"].transpose(0, 1)
        # The mask of its full tiles is all ones; the model assumes it.
        tensors.pop("pixel_attention_mask", None)
    return placeholder, tensors


def read_levels(processor: Any, image: Image.Image, tiling: DeviceTiling) -> tuple[str, dict[str, Tensor]]:
    """Return the text that stands for `image` in a prompt, and its 8-bit levels, for `tiling` to cut.

    An image that is larger than the model sees it is shrunk here: fewer bytes are handed over.
    """
    if (size := widen_strip(image.size)) != image.size:
        image = image.resize(size)
    levels = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    if max(image.size) > (edge := tiling.size["longest_edge"]):
        own = processor.image_processor
        shrunk = own.resize(levels.permute(2, 0, 1), SizeDict(longest_edge=edge), resample=own.resample)  # (3, H, W)
        levels = shrunk.permute(1, 2, 0).contiguous()
    size = (levels.shape[1], levels.shape[0])
    rows, columns = tiling.grid_of(size)
    placeholder = processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    return placeholder, {"levels": levels.flatten(), "size": torch.tensor([size])}


def _without(token: str, part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "text": drop_token(part["text"], token)} if part["type"] == "text" else part


def stop_token_ids(model: Any, processor: Any) -> list[int]:
    """Return the ids that end a turn: `<end_of_utterance>` where the tokenizer has it, else what the model names.

    Idefics3 pads with `<|im_end|>`; its text configuration also calls that the end of sequence, it is not.
    """
    tokenizer = processor.tokenizer
    if END_OF_UTTERANCE in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)]
    named = model.generation_config.eos_token_id
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    return sorted({*named, tokenizer.eos_token_id} - {None})
