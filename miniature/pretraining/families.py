"""Image and prompt encoding of the three families, for `miniature.pretraining.pretrain`.

A picture is the whole canvas or a crop, resized as the family's processor does. The processor takes
pictures one by one; here a batch of uint8 tiles is encoded at once. `tests/test_pretrain.py` compares the two.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from miniature.tiny_models import TILE, build_llava, build_qwen, build_smolvlm
from miniature.world import COLORS

MAX_PIXELS = 140 * 140  # of the teacher's images


class SmolVLM:
    """Idefics3: 64 patches of 8 px, merged two by two into 16 image tokens."""

    build = staticmethod(build_smolvlm)
    lessons = (("read", 0.36), ("answer", 0.02), ("place", 0.62))
    sees_crops = True
    knows_places = True  # from the position embeddings of its vision tower
    answer_prefix = " "  # the template's text before the answer
    answers_weigh_alike = False  # in the loss, whatever their length; False weighs tokens alike
    patches_a_token = 4

    def __init__(self, seed: int = 0):
        self.model, self.processor = self.build(seed)

    @staticmethod
    def tile_size(canvas: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the tile for a picture of a canvas of (width, height)."""
        return TILE, TILE

    @staticmethod
    def label_grid(height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the cells of a tile that have labels."""
        return height // 8, width // 8

    @staticmethod
    def resize(picture: Image.Image, height: int, width: int) -> Image.Image:
        """Resize the longest edge first, then to the square tile, as Idefics3's processor does."""
        scale = TILE / max(picture.size)
        first = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        lanczos = Image.Resampling.LANCZOS
        return picture.resize(first, lanczos, reducing_gap=3).resize((width, height), lanczos)

    @staticmethod
    def by_token(labels: np.ndarray) -> np.ndarray:
        """Labels of the patches, (64,), reordered from row by row to token by token; a token holds a block of 2 x 2."""
        return labels.reshape(4, 2, 4, 2).swapaxes(1, 2).ravel()

    def encode(self, tiles: Tensor) -> Tensor:
        """Encode tiles, (B, H, W, 3) uint8, to the features that the language model gets, (B, tokens, D)."""
        pixels = tiles.permute(0, 3, 1, 2)[:, None] / 127.5 - 1  # (B, 1, 3, H, W)
        return torch.stack(tuple(self.model.get_image_features(pixel_values=pixels).pooler_output))

    def image_text(self, tokens: int) -> str:
        return f"<fake_token_around_image><global-img>{'<image>' * tokens}<fake_token_around_image>"

    image_placeholder = "<image>"

    def model_inputs(self, input_ids: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Inputs of the model's forward besides tokens and features. `shape` is the tile's (height, width)."""
        return {}

    @property
    def language_layers(self) -> nn.ModuleList:
        return self.model.model.text_model.layers

    def color_words(self) -> dict[str, int]:
        """Token id of each colour's word; each is a single token in the tokenizer."""
        tokenizer = self.processor.tokenizer
        return {color: tokenizer(f" {color}", add_special_tokens=False).input_ids[0] for color in COLORS}


class Llava(SmolVLM):
    """CLIP's tower on 64 x 64 px, 64 image tokens."""

    build = staticmethod(build_llava)
    lessons = (("read", 0.92), ("answer", 0.08))
    answers_weigh_alike = True
    patches_a_token = 1

    @staticmethod
    def resize(picture: Image.Image, height: int, width: int) -> Image.Image:
        return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)

    @staticmethod
    def by_token(labels: np.ndarray) -> np.ndarray:
        return labels

    def encode(self, tiles: Tensor) -> Tensor:
        features = self.model.get_image_features(pixel_values=clip_normalise(tiles)).pooler_output
        return torch.stack(tuple(features))

    def image_text(self, tokens: int) -> str:
        return "<image>" * tokens

    @property
    def language_layers(self) -> nn.ModuleList:
        return self.model.model.language_model.layers


class Qwen(Llava):
    """Qwen2.5-VL: tokens of 28 x 28 px; the tower has no absolute positions, only the language model has."""

    build = staticmethod(build_qwen)
    lessons = (("outline", 1.0),)
    sees_crops = False
    knows_places = False
    answer_prefix = ""  # a line break, already in the prompt
    image_placeholder = "<|image_pad|>"

    @staticmethod
    def tile_size(canvas: tuple[int, int]) -> tuple[int, int]:
        return smart_resize(canvas[1], canvas[0], factor=28, min_pixels=56 * 56, max_pixels=MAX_PIXELS)

    @staticmethod
    def label_grid(height: int, width: int) -> tuple[int, int]:
        return height // 28, width // 28

    def encode(self, tiles: Tensor) -> Tensor:
        """Encode in the processor's order: blocks of 2 x 2 patches, each (channel, time, 14, 14), the picture twice."""
        count, height, width, _ = tiles.shape
        rows, columns = height // 14, width // 14
        cells = clip_normalise(tiles).reshape(-1, 3, 1, rows // 2, 2, 14, columns // 2, 2, 14)
        cells = cells.expand(-1, 3, 2, -1, -1, -1, -1, -1, -1)
        pixels = cells.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(-1, 3 * 2 * 14 * 14)
        grid = torch.tensor([[1, rows, columns]] * count)
        features = self.model.get_image_features(pixel_values=pixels, image_grid_thw=grid).pooler_output
        return torch.stack(tuple(features))

    def image_text(self, tokens: int) -> str:
        return self.image_placeholder * tokens

    def model_inputs(self, input_ids: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        image_token = self.processor.tokenizer.convert_tokens_to_ids(self.image_placeholder)
        return {
            "image_grid_thw": torch.tensor([[1, shape[0] // 14, shape[1] // 14]] * len(input_ids)),
            "mm_token_type_ids": (input_ids == image_token).long(),
        }


FAMILIES: dict[str, Any] = {"smolvlm": SmolVLM, "llava": Llava, "qwen": Qwen}


def clip_normalise(tiles: Tensor) -> Tensor:
    """Normalise (N, H, W, 3) uint8 to (N, 3, H, W) with CLIP's mean and standard deviation."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((tiles / 255 - mean) / std).permute(0, 3, 1, 2)
