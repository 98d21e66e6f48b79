"""Models for use and for training: loaded from a Hub id, a folder or an adapter, with LoRA where it is wanted."""

import itertools
import logging
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from cropvlm.errors import UserError, failure
from cropvlm.likelihood import answer_log_likelihood  # noqa: F401 (where a reader looks for it)
from cropvlm.models.adapters import adapter_bases, attach_adapter, base_of, is_adapter, merge_adapter
from cropvlm.models.loading import NO_CODE, device_and_dtype
from cropvlm.models.processors import first_processor, set_image_fit, set_image_size
from cropvlm.models.revisions import split_revision
from cropvlm.prompts import answerer_messages

logger = logging.getLogger(__name__)


def load_processor(
    path: str,
    longest_edge: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    image_fit: str = "pad",
) -> ProcessorMixin:
    """Return the processor of a model, ready for batches (padding on the left).

    Args:
        path: Hub id, `save_pretrained` folder, or PEFT adapter folder (its base's if it holds none).
        longest_edge: pixels of the longer side that an image is resized to (Idefics3 and SmolVLM).
        min_pixels, max_pixels: bounds on width x height of the resized image (Qwen2-VL and its successors).
        image_fit: "pad" or "crop", for a processor that centre-crops: whether it sees the sides of an image.

    Raises `UserError`: no processor there, none that can write a chat about images, or of images of another size.
    """
    processor = first_processor(itertools.chain([path], adapter_bases(path)), path)
    processor.tokenizer.padding_side = "left"
    set_image_size(processor, path, longest_edge, min_pixels, max_pixels)
    set_image_fit(processor, image_fit)
    with failure(f"{path}: its chat template cannot be applied"):
        processor.apply_chat_template(answerer_messages("Which?", 1), add_generation_prompt=True, tokenize=False)
    return processor


def load_model(
    path: str,
    base_model_path: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Any:
    """Return a model in evaluation mode; an adapter is merged into its base.

    Args:
        path: Hub id, `save_pretrained` folder, or PEFT adapter folder (or one of its checkpoints).
        base_model_path: the adapter's base, where the one that its configuration names has moved.
        device: defaults to the first GPU, else the CPU.
        dtype: defaults to bfloat16 on a GPU and float32 on the CPU, also beside a GPU.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None leaves the choice to transformers.

    Raises `UserError`: no model there, or an adapter that cannot be merged into its base.
    """
    default_device, default_dtype = device_and_dtype(None if str(device) == "cpu" else 0)
    dtype = default_dtype if dtype is None else dtype
    model = load_full_model(path, dtype, attn_implementation, base_model_path)
    return model.to(default_device if device is None else device).eval()


def load_full_model(
    path: str, dtype: torch.dtype, attn_implementation: str | None = None, base_model_path: str | None = None
) -> PreTrainedModel:
    """Return the image-text-to-text model at a Hub id or in a folder, on the CPU; an adapter is merged into its base.

    Weights are read from safetensors only: the other format is a pickle. The other arguments are `load_model`'s.
    Raises `UserError`: no such model, some of its weights are missing, or an adapter that cannot be merged.
    """
    if is_adapter(path):
        # Merged in fp32: in bf16 the sum would round most of a small adapter away.
        adapted = load_adapter(path, base_model_path, torch.float32, attn_implementation=attn_implementation)
        model = merge_adapter(adapted, path)
        for parameter in model.parameters():  # the buffers stay: rotary frequencies are float32 in every dtype
            parameter.data = parameter.data.to(dtype)
        return model
    if base_model_path:
        logger.warning("%s is a whole model: its base %s is not used", path, base_model_path)
    name, revision = split_revision(str(path))
    options = NO_CODE if attn_implementation is None else NO_CODE | {"attn_implementation": attn_implementation}
    with failure(f"{path}: cannot be loaded as an image-text-to-text model"):
        model, info = AutoModelForImageTextToText.from_pretrained(
            name, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; the model is incomplete")
    if dtype == torch.float32 and not getattr(model, "is_quantized", False):
        model.float()  # without a GPU for FP8, such a checkpoint is loaded as bfloat16
    return model


def load_adapter(
    path: str,
    base_model_path: str | None = None,
    dtype: torch.dtype = torch.float32,
    is_trainable: bool = False,
    attn_implementation: str | None = None,
) -> PeftModel:
    """Return the LoRA adapter at `path` on its base, on the CPU; the adapter's own weights are always float32.

    dtype: of the base's weights. The other arguments are `load_model`'s.
    Raises `UserError`: no base, or one that cannot be loaded or that the adapter does not fit.
    """
    base = base_model_path or base_of(path)
    return attach_adapter(load_full_model(base, dtype, attn_implementation), path, base, is_trainable)


def load_policy(
    path: str, lora: LoraConfig | None, dtype: torch.dtype, attn_implementation: str | None = None
) -> torch.nn.Module:
    """Return the model to train, on the CPU: its trainable weights are float32, its frozen ones `dtype`.

    path: an adapter folder or checkpoint, which is trained on as it is, or a whole model. lora: the fresh adapter that
    a whole model gets; None trains all of its weights.
    Raises `UserError` as the loaders do, and for an adapter with `lora` None.
    """
    if is_adapter(path):
        if lora is None:
            raise UserError(f"{path} is an adapter: its base cannot be trained whole; name a merged model")
        return load_adapter(path, dtype=dtype, is_trainable=True, attn_implementation=attn_implementation)
    if lora is None:
        return load_full_model(path, torch.float32, attn_implementation)
    return get_peft_model(load_full_model(path, dtype, attn_implementation), lora)
