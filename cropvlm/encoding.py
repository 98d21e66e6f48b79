"""Prompts and images to model inputs: every distinct image of a batch is encoded once.

The answers with and without the crop share the full image, so do a group's six crops in training, and benchmarks ask
several questions about one image (TextVQA 1.6 of them, DocVQA 4, HR-Bench 4). An image is known by its pixels here:
it goes through the vision encoder once, and its features are then placed wherever a prompt of the batch shows it.
transformers takes such features as `mm_encoder_outputs`, in `forward` as in `generate`, for SmolVLM (Idefics3), LLaVA
and Qwen2.5-VL alike.
"""

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropvlm.crops import widened
from cropvlm.models.qwen import budget_of, qwen_image
from cropvlm.models.tiling import DeviceTiling, cut_tiles
from cropvlm.prompts import Messages, Prompt, without_placeholders

# Values of pixel_values in one call of the vision encoder, in tiles of SmolVLM. 64 fill a GPU. A batch of 64 rows at
# 2048 px has 2,000; encoded at once, each of its activations (2,000 x 1,024 x 3,072) would take 12 GiB in bf16. A CPU's
# caches are best used by one.
TILE = 3 * 512 * 512
ENCODED_AT_ONCE = {"cuda": 64 * TILE, "cpu": TILE}
FEW_IMAGES = 4  # up to which threads gain nothing

END_OF_UTTERANCE = "<end_of_utterance>"


class PreparedImage(NamedTuple):
    """The tokens that an image takes in a prompt, and the image processor's output or the 8-bit `levels` and `size`."""

    tokens: int
    tensors: dict[str, Tensor]  # (tiles, ...) or (patches, ...) along dimension 0


@dataclass
class Prepared:
    """Prompts as token ids, beside their distinct images as tensors. Moves between processes; not yet padded."""

    input_ids: list[list[int]]  # per prompt
    shown: list[list[bytes]]  # per prompt: the key of the image at each of its placeholders
    images: dict[bytes, PreparedImage]  # by key, which is the same for equal pixels
    tiling: DeviceTiling | None = None  # how tiles are still to be cut from levels

    def pin_memory(self) -> "Prepared":
        """Return the same with page-locked images, which a DataLoader asks for: they are copied to a GPU meanwhile."""
        pinned = {
            key: PreparedImage(tokens, {name: tensor.pin_memory() for name, tensor in tensors.items()})
            for key, (tokens, tensors) in self.images.items()
        }
        return replace(self, images=pinned)


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
    if tiling is None:
        keys = {identity: image_key(np.asarray(image)) for identity, image in objects.items()}
        by_key = {keys[identity]: image for identity, image in objects.items()}
        processed = {key: process_image(processor, image, dtype) for key, image in by_key.items()}
    else:

        def read(image: Image.Image) -> tuple[bytes, tuple[str, dict[str, Tensor]]]:
            placeholder, tensors = read_levels(processor, image, tiling)
            return image_key(tensors["levels"].numpy()), (placeholder, tensors)

        with ThreadPoolExecutor() as threads:  # for GRPO's rewards; a worker's single row starts none
            each = threads.map if len(objects) > FEW_IMAGES else map
            keyed = dict(zip(objects, each(read, objects.values()), strict=True))
        keys = {identity: key for identity, (key, _) in keyed.items()}
        processed = dict(keyed.values())
    shown = [[keys[id(image)] for image in images] for _, images in prompts]
    texts, _ = processor.get_text_with_replacements(
        [chat_text(processor, messages) for messages, _ in prompts],
        images_replacements=[processed[key][0] for row in shown for key in row],
    )
    images = {
        key: PreparedImage(placeholder.count(processor.image_token), tensors)
        for key, (placeholder, tensors) in processed.items()
    }
    distinct = list(dict.fromkeys(texts))  # crops that take as many tokens leave a group's prompts alike
    input_ids = dict(zip(distinct, processor.tokenizer(distinct)["input_ids"], strict=True))
    return Prepared([input_ids[text] for text in texts], shown, images, tiling)


def image_key(levels: np.ndarray) -> bytes:
    """The same 16 bytes for the same pixels. levels: (H, W, 3) uint8."""
    return xxhash.xxh3_128_digest(str(levels.shape).encode() + levels.data)


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
        tiling=parts[0].tiling,
    )


def model_inputs(model: Any, prepared: Prepared, pad_token_id: int) -> dict[str, Any]:
    """Keyword arguments for `model(...)` and `model.generate(...)`, padded on the left, images encoded.

    Each distinct image is encoded once. Gradients flow through the features.
    """
    prompts = [torch.tensor(ids) for ids in prepared.input_ids]
    masks = [torch.ones_like(ids) for ids in prompts]
    input_ids = pad_sequence(prompts, batch_first=True, padding_value=pad_token_id, padding_side="left")  # (B, L)
    mask = pad_sequence(masks, batch_first=True, padding_side="left")  # (B, L)
    shown = [key for keys in prepared.shown for key in keys]
    features = encode_images(model, prepared)
    inputs = {
        "input_ids": input_ids.to(model.device),
        "attention_mask": mask.to(model.device),
        "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[features[key] for key in shown])},
    }
    grids = [prepared.images[key].tensors.get("image_grid_thw") for key in shown]
    if grids[0] is not None:  # Qwen2.5-VL computes its 3D positions from these two
        inputs["image_grid_thw"] = torch.cat(grids).to(model.device)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    return inputs


def encode_images(model: Any, prepared: Prepared) -> dict[bytes, Tensor]:
    """The features of each distinct image by its key, (tokens, D) each."""
    accepted = inspect.signature(model.get_image_features).parameters
    images, tiling = list(prepared.images.values()), prepared.tiling
    if tiling is None:
        values = [tensors["pixel_values"].numel() for _, tensors in images]
    else:
        values = [tiling.values_of(tensors["levels"]) for _, tensors in images]
    features = []
    for part in encoded_at_once(values, model.device):
        inputs = on_device([image.tensors for image in images[part]], tiling, model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        inputs = {name: value for name, value in inputs.items() if name in accepted}
        features += model.get_image_features(**inputs, return_dict=True).pooler_output
    tokens = [image.tokens for image in images]
    return dict(zip(prepared.images, torch.cat(features).split(tokens), strict=True))


def on_device(images: list[dict[str, Tensor]], tiling: DeviceTiling | None, device: torch.device) -> dict[str, Tensor]:
    """The tensors of all images in a row on the device; their tiles are cut there if that is still to be done."""
    moved = {name: [tensors[name].to(device, non_blocking=True) for tensors in images] for name in images[0]}
    if tiling is None:
        return {name: torch.cat(tensors) for name, tensors in moved.items()}
    return {"pixel_values": cut_tiles(tiling, moved["levels"])}


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
        image = qwen_image(image, *budget_of(image_processor))
        options["do_resize"] = False
    else:
        image = widened(image)
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

    An image that is larger than the model sees it is shrunk here, as by its processor: fewer bytes are handed over.
    """
    levels = np.array(widened(image))  # (H, W, 3) uint8
    if max(image.size) > (edge := tiling.size["longest_edge"]):
        own, channels_first = processor.image_processor, levels.transpose(2, 0, 1)
        given = channels_first if isinstance(own, PilBackend) else torch.from_numpy(channels_first)
        shrunk = own.resize(given, SizeDict(longest_edge=edge), resample=own.resample)  # (3, H, W)
        levels = np.ascontiguousarray(np.asarray(shrunk).transpose(1, 2, 0))
    rows, columns = tiling.grid_of((levels.shape[1], levels.shape[0]))
    placeholder = processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    return placeholder, {"levels": torch.from_numpy(levels)}


def stop_token_ids(model: Any, processor: Any) -> list[int]:
    """Return the ids that end a turn: `<end_of_utterance>` where the tokenizer has it, else what the model names.

    Idefics3 pads with `<|im_end|>`; its text configuration also calls that the end of sequence, it is not.
    """
    tokenizer = processor.tokenizer
    if END_OF_UTTERANCE in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)]
    return sorted({*named_stop_ids(model), tokenizer.eos_token_id} - {None})


def named_stop_ids(model: Any) -> list[int]:
    """Return the ids at which the model's own generation config stops."""
    named = model.generation_config.eos_token_id
    return [] if named is None else [named] if isinstance(named, int) else list(named)
