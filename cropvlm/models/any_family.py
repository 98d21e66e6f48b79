"""The general way: a VLM of any family, asked prompt by prompt through its own processor and `generate`.

SmolVLM (Idefics3), LLaVA-1.5 and Qwen2.5-VL share encodings between prompts (`cropvlm.encoding`). Other families may
treat images differently, or change their answers when padded; asked alone, they answer as they do anywhere.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, GenerationConfig

from cropvlm.crops import widened
from cropvlm.errors import failure

# Families whose `get_image_features` and `mm_encoder_outputs` `cropvlm.encoding` relies on: model type, processor.
SHARED = {
    ("idefics3", "Idefics3Processor"),
    ("smolvlm", "SmolVLMProcessor"),
    ("llava", "LlavaProcessor"),
    ("qwen2_5_vl", "Qwen2_5_VLProcessor"),
}
# Attributes of processors with the texts that stand for images and videos.
PLACEHOLDERS = ("image_token", "boi_token", "start_image_token", "video_token")


def shares_encodings(model: Any, processor: Any) -> bool:
    """Whether prompts of this model can be prepared by `cropvlm.encoding`, every image encoded once."""
    return (model.config.model_type, type(processor).__name__) in SHARED


def placeholders(processor: Any) -> list[str]:
    """Texts that stand for an image or a video in this family's prompts; no question may contain one."""
    named = [getattr(processor, name, None) for name in PLACEHOLDERS]
    return [token for token in named if isinstance(token, str)]


def prepare_alone(processor: Any, prompts: list[tuple], dtype: torch.dtype | None = None) -> list[BatchFeature]:
    """Return the inputs of each prompt, preprocessed by itself.

    prompts: (chat messages, PIL images). dtype: of the model; pixels are cast to it.
    """
    return [_inputs(processor, *prompt).to(dtype=dtype) for prompt in prompts]


def _inputs(processor: Any, messages: list[dict], images: list[Image.Image]) -> BatchFeature:
    pictures = map(widened, images)

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "image": next(pictures)} if part["type"] == "image" else part

    messages = [message | {"content": [filled(part) for part in message["content"]]} for message in messages]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@torch.inference_mode()
def generate_alone(model: Any, processor: Any, row: list[BatchFeature], config: GenerationConfig) -> list[str]:
    """Return the text of each prompt of a row, generated one by one."""
    texts = []
    for inputs in row:
        output = model.generate(**inputs.to(model.device), generation_config=config)
        texts += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def check_takes_images(
    model: Any, processor: Any, rows: Sequence[list[tuple]], ask: Callable, config: GenerationConfig
) -> None:
    """Let the model answer a made-up question about as many images as the first readable row shows.

    rows: prompts of each row, (chat messages, PIL images). ask: makes such a prompt from a list of images.
    Raises `UserError` if the model cannot answer from that number of images.
    """
    picture = Image.new("RGB", (64, 48), "gray")
    config = GenerationConfig(**config.to_diff_dict() | {"max_new_tokens": 1, "min_new_tokens": None})
    for number in sorted({len(images) for _, images in _first_good(rows)}):
        images = "an image" if number == 1 else f"{number} images at once"
        with failure(f"{type(model).__name__} cannot answer from {images}"):
            trials = [prepare_alone(processor, [ask([picture] * n)], model.dtype) for n in range(1, number + 1)]
            lengths = [inputs["input_ids"].shape[1] for (inputs,) in trials]
            if lengths != sorted(set(lengths)):
                raise ValueError("its prompt does not grow with them")
            generate_alone(model, processor, trials[-1], config)


def _first_good(rows: Sequence[list[tuple]]) -> list[tuple]:
    for i in range(len(rows)):
        with contextlib.suppress(Exception):  # the row will fail by itself
            return rows[i]
    return []
