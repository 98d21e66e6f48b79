"""Pictures and prompts that several tests show to models."""

import io

import numpy as np
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import Qwen2_5_VLProcessor

from cropvlm.errors import UnreadableImage
from cropvlm.prompts import answerer_messages

QUESTION = "What is written on the red sign?"


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(image) -> bytes:
    """An image file's bytes."""
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def checkered():
    """3x2 pixels, each of another colour."""
    image = Image.new("RGB", (3, 2))
    image.putdata([RED, GREEN, BLUE, WHITE, (10, 20, 30), (200, 100, 50)])
    return image


def pixels(image):
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


def count_tiles(monkeypatch, model):
    """A list that grows by the number of tiles of each pass of the model's vision encoder."""
    tiles, encode = [], model.model.vision_model.forward
    forward = lambda **kwargs: tiles.append(len(kwargs["pixel_values"])) or encode(**kwargs)  # noqa: E731
    monkeypatch.setattr(model.model.vision_model, "forward", forward)
    return tiles


def pair(full, crop, question=QUESTION):
    return [(answerer_messages(question, 1), [full]), (answerer_messages(question, 2), [full, crop])]


class Pairs:
    """Rows of two prompts; a row of None is unreadable."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if self.rows[i] is None:
            raise UnreadableImage("unreadable image: test")
        return pair(*self.rows[i])

    def image_sizes(self, i):
        return [image.size for image in self.rows[i]] if self.rows[i] else []


def as_authors_show(processor, images):
    """A chat's images as qwen_vl_utils prepares them for Qwen2.5-VL's processor; unchanged for others."""
    if not isinstance(processor, Qwen2_5_VLProcessor):
        return images
    size = processor.image_processor.size
    pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    content = [{"type": "image", "image": image} | pixels for image in images]
    return process_vision_info([{"role": "user", "content": content}])[0]
