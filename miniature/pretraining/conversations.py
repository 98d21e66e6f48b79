"""Lessons as tensors: conversations about pictures, tokenized as by the family's processor."""

from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from miniature.pretraining.families import SmolVLM
from miniature.pretraining.lessons import COLOR_IDS, IGNORE, PLACES, Example, place_labels


class Conversation:
    """Examples of one lesson and one tile shape as tensors, left-padded; labels cover the answer and the stop token."""

    def __init__(self, family: SmolVLM, examples: list[Example]):
        rows = [tokenize(family, example) for example in examples]
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        pad = family.processor.tokenizer.pad_token_id
        self.input_ids = torch.full((len(rows), length), pad)
        self.labels = torch.full((len(rows), length), IGNORE)
        for i, (prompt, answer) in enumerate(rows):
            self.input_ids[i, -len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
            self.labels[i, -len(answer) :] = torch.tensor(answer)
        self.shown = shown_tokens(family, examples, self.input_ids)  # (B, L)
        self.keep = max(len(answer) for _, answer in rows) + 1
        self.features = torch.cat([p.features for e in examples for p in e.pictures])  # (B * images * tokens, D)
        self.shape = examples[0].pictures[0].tile.shape[:2]
        self.places = None  # (B, PLACES), where the answer is a place
        if examples[0].bbox is not None:
            labels = [place_labels(e.bbox) for e in examples]
            self.places = torch.tensor([[row[name] for name in PLACES] for row in labels])

    def logits(self, family: SmolVLM) -> tuple[Tensor, Tensor]:
        """Logits (B, keep - 1, V) and the targets (B, keep - 1) that they predict."""
        pad = family.processor.tokenizer.pad_token_id
        mask = (self.input_ids != pad).long()
        mask[self.labels != IGNORE] = 1
        output = family.model(
            input_ids=self.input_ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=(self.features,))},
            logits_to_keep=self.keep,
            **family.model_inputs(self.input_ids, self.shape),
        )
        return output.logits[:, :-1], self.labels[:, 1 - self.keep :]


def shown_tokens(family: SmolVLM, examples: list[Example], input_ids: Tensor) -> Tensor:
    """Mask of the image tokens that show the placard's colour, (B, L)."""
    rows = [
        (np.concatenate([p.labels["color"] for p in e.pictures]) == COLOR_IDS[e.color])
        .reshape(-1, family.patches_a_token)
        .any(1)
        for e in examples
    ]
    shown = torch.zeros(input_ids.shape)
    image_token = family.processor.tokenizer.convert_tokens_to_ids(family.image_placeholder)
    shown[input_ids == image_token] = torch.from_numpy(np.concatenate(rows)).float()
    return shown


def tokenize(family: SmolVLM, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, including its image tokens, and of the answer with the stop token."""
    text = chat_text(family, example.messages[0]["content"][-1]["text"], len(example.pictures))
    tokens = len(example.pictures[0].labels["color"]) // family.patches_a_token
    text = text.replace(family.image_placeholder, family.image_text(tokens))
    return encode_text(family, text), [
        *encode_text(family, family.answer_prefix + example.answer),
        family.processor.tokenizer.eos_token_id,
    ]


@cache
def chat_text(family: SmolVLM, text: str, images: int) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return family.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


@lru_cache(maxsize=200_000)
def encode_text(family: SmolVLM, text: str) -> list[int]:
    return family.processor.tokenizer(text, add_special_tokens=False).input_ids
