"""Tiny random models of families beyond the miniature's three, of the real classes, with lively weights."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig

from miniature.tiny_models import (
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    SMOLVLM_TEMPLATE,
    SMOLVLM_TILE_TAGS,
    TILE,
    build_tokenizer,
    small_llama,
)

VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER = VISION | {"image_size": TILE, "patch_size": 8}  # 64 patches an image


def text_of(tokenizer, **more) -> dict:
    """A language model of two layers."""
    return small_llama(len(tokenizer)) | {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128} | more


def stop_of(tokenizer) -> dict:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def qwen3_vl():
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = build_tokenizer("<|im_end|>", "<|endoftext|>", special)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    pixels = {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}
    image_processor = transformers.Qwen2VLImageProcessor(patch_size=16, size=pixels)
    video_processor = transformers.Qwen3VLVideoProcessor(patch_size=16)
    processor = transformers.Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=QWEN_TEMPLATE)
    config = transformers.Qwen3VLConfig(
        text_config=text_of(tokenizer, head_dim=16, rope_parameters=rope),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def llava_next():
    tokenizer = build_tokenizer("</s>", "<pad>", ["<image>"], bos_token="</s>")
    grid = [[64, 128], [128, 64], [128, 128]]
    square = {"height": TILE, "width": TILE}
    image_processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size=square, image_grid_pinpoints=grid
    )
    processor = transformers.LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = transformers.LlavaNextConfig(
        vision_config=TOWER | {"model_type": "clip_vision_model", "projection_dim": 48},
        text_config=text_of(tokenizer, model_type="llama"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def smolvlm2():
    special = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", *SMOLVLM_TILE_TAGS]
    tokenizer = build_tokenizer("<end_of_utterance>", "<|im_end|>", special, bos_token="<|im_start|>")
    edges = {"size": {"longest_edge": TILE}, "max_image_size": {"longest_edge": TILE}}
    video_processor = transformers.SmolVLMVideoProcessor(
        **edges, video_sampling={"fps": 1, "max_frames": 8, "video_size": {"longest_edge": TILE}}
    )
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**edges),
        tokenizer,
        video_processor,
        image_seq_len=16,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = transformers.SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        vision_config=TOWER,
        text_config=text_of(tokenizer),
        tie_word_embeddings=True,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


BUILD: dict[str, Callable] = {"qwen3_vl": qwen3_vl, "llava_next": llava_next, "smolvlm2": smolvlm2}


def save_family(name: str, folder: Path) -> Path:
    """Write a model and its processor into `folder`, with weights so large that texts differ from row to row."""
    torch.manual_seed(0)
    model, processor = BUILD[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    model.generation_config = GenerationConfig(**stop_of(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
