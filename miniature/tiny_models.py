"""Tiny models of the real classes with random weights, for `miniature.pretraining.pretrain` and the tests.

The tokenizer is a byte-level BPE learnt from the miniature's own sentences, with SmolVLM's, Qwen2.5-VL's or
LLaVA-1.5's special tokens and chat template, so that processors, templates and stop tokens match the real models'.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from cropvlm import prompts
from cropvlm.boxes import format_bbox
from miniature.world import COLORS, KINDS, LEXICON, QUESTIONS

TILE = 64  # pixels; the miniature's stand-in for SmolVLM's 512
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Prompts of several lengths and answers of several forms, so that the models learn places rather than a format.
PLACE_LESSONS = (
    ("Point to the {color} {kind}.", "[{cx}, {cy}]."),
    ("{question}\nPoint to it.", "{cx} {cy}."),
    ("Frame the {color} {kind}.", "{x1} {y1} {x2} {y2}."),
    ("{question}\nFrame it.", "[{x1} {y1} {x2} {y2}]."),
    ("{question}\nGive two corners of a frame that holds the answer.", "[{x1}, {y1}] [{x2}, {y2}]."),
    ("Find the {color} {kind} and give left, top, right and bottom of a frame.", "{x1}, {y1}, {x2}, {y2}."),
)
SMOLVLM_TILE_TAGS = ["<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]


def sentences() -> list[str]:
    """The sentences that the miniature's models read and write, to train the tokenizer on."""
    questions = [q.format(color=c, kind=k) for q in QUESTIONS for c in COLORS for k in KINDS]
    words = [*LEXICON, *COLORS, *KINDS, "unanswerable"]
    places = [prompt.format(color=c, kind=k, question="") for prompt, _ in PLACE_LESSONS for c in COLORS for k in KINDS]
    places += 2 * [" 90 10.", " 12 34 56 78."] + [" (12, 34) (56, 78).", " 12, 34, 56, 78."]
    texts = [*places, *(f"Assistant: {word.capitalize()}." for word in words), *(f" {word}" for word in words)]
    for question in questions:
        for messages in (
            prompts.teacher_messages(question),
            prompts.cropper_messages(question),
            prompts.answerer_messages(question, 2),
        ):
            texts += [part["text"] for m in messages for part in m["content"] if part["type"] == "text"]
    boxes = [format_bbox((n, n + 1, 99 - n, 98)) for n in range(10, 40)]
    json_boxes = [
        f'```json\n[\n\t{{"bbox_2d": [{n}, {n + 9}, {n + 20}, {n + 40}], "label": "sign"}}\n]\n```' for n in range(60)
    ]
    plain = [
        "User:",
        "USER: ",
        "ASSISTANT:",
        "You are a helpful assistant.",
        "system\n",
        "user\n",
        "assistant\n",
    ]
    return [*(text for text in texts for _ in range(4)), *boxes, *json_boxes, *plain * 50]


def build_tokenizer(eos: str, pad: str, special: list[str], **kwargs) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 500 entries, one token per digit as in SmolLM2 and Qwen2.5."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(dict.fromkeys([pad, eos, *special])),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(sentences(), trainer)
    extra = [token for token in special if token not in (eos, pad)]
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=extra,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **kwargs,
    )


def build_smolvlm(seed: int = 0) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """A small SmolVLM: Idefics3 with 64-px tiles of 16 image tokens, 64 patches of 8 px each."""
    special = [
        "<|im_start|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        *SMOLVLM_TILE_TAGS,
    ]
    tokenizer = build_tokenizer("<end_of_utterance>", "<|im_end|>", special, bos_token="<|im_start|>")
    image_processor = Idefics3ImageProcessor(
        size={"longest_edge": TILE}, max_image_size={"longest_edge": TILE}, resample=1
    )
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=16, chat_template=SMOLVLM_TEMPLATE)
    stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": 8,
        },
        text_config=small_llama(len(tokenizer)) | stop,
    )
    return initialise(Idefics3ForConditionalGeneration, config, seed, stop), processor


def build_llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A small LLaVA-1.5: a CLIP tower on 64 x 64 px, every image resized to that square, 64 image tokens."""
    tokenizer = build_tokenizer("</s>", "<pad>", ["<image>"], bos_token="</s>")
    image_processor = CLIPImageProcessor(size={"height": TILE, "width": TILE}, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlavaConfig(
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=64,
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": 8,
            "projection_dim": 96,
        },
        text_config=small_llama(len(tokenizer)) | {"model_type": "llama"} | stop,
        tie_word_embeddings=True,
    )
    return initialise(LlavaForConditionalGeneration, config, seed, stop), processor


def build_qwen(seed: int = 0) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A small Qwen2.5-VL: patches of 14 px merged two by two, at most 140 x 140 px per image (25 image tokens)."""
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = build_tokenizer("<|im_end|>", "<|endoftext|>", special)
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 140 * 140}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=pixels),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
    stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 96,
            "fullatt_block_indexes": [0, 1, 2],
        },
        text_config=small_llama(len(tokenizer))
        | {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 5, "bos_token_id": None}
        # A base this low, so that heights and widths of at most 7 tokens change the rotary angles enough.
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "mrope_section": [1, 4, 7]}}
        | stop,
    )
    return initialise(Qwen2_5_VLForConditionalGeneration, config, seed, stop), processor


def small_llama(vocab_size: int) -> dict:
    """The language model's size, the same in all three families: about 0.6 M parameters."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }


def initialise(model_class: type, config, seed: int, stop: dict[str, int]):
    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config = GenerationConfig(**stop)
    return model.eval()


def save(folder: str | Path, model, processor) -> Path:
    """Write `folder` as `save_pretrained` does, so that scripts accept it in place of a Hub id."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
