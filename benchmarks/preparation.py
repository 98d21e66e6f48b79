"""Cost of preparing an image for SmolVLM on one thread, two ways in one run: as tiles, and as 8-bit levels.

    python3 benchmarks/preparation.py --longest_edge 2048

tiles   the processor resizes, cuts and normalises in the worker or training process, and hands over bfloat16 tiles
levels  the image is handed over as decoded; its tiles are cut on the GPU (`cropvlm/models/tiling.py`)

JPEGs of about 1024x768, opened once for both. `--reward` measures a GRPO step's reward instead, in the training
process: 16 images with 6 crops each, from decoded images to what is handed over.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from smolvlm import TILE, TILE_TOKENS
from synthetic import photos
from transformers import Idefics3ImageProcessor, Idefics3Processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.crops import crop_bbox
from cropvlm.data.images import open_image
from cropvlm.encoding import Prepared, prepare
from cropvlm.models.tiling import tiling_of
from cropvlm.prompts import answerer_prompt
from cropvlm.runs.cli import positive
from miniature.tiny_models import build_smolvlm

G = 6  # completions of a prompt
QUESTION = "What is written on the red sign?"


def make_processor(longest_edge: int) -> Idefics3Processor:
    """SmolVLM's image preprocessing with the miniature's tokenizer."""
    _, small = build_smolvlm()
    image_processor = Idefics3ImageProcessor(
        size={"longest_edge": longest_edge}, max_image_size={"longest_edge": TILE}, resample=1
    )
    return Idefics3Processor(
        image_processor, small.tokenizer, image_seq_len=TILE_TOKENS, chat_template=small.chat_template
    )


def rows_of_images(images: list[Image.Image]) -> list[list]:
    """A prompt with the full image for each."""
    return [[answerer_prompt(QUESTION, [image])] for image in images]


def rows_of_a_step(images: list[Image.Image]) -> list[list]:
    """One batch: every image with each of six crops, a fifth to three fifths of its sides."""
    draw = np.random.default_rng(0)
    prompts = []
    for image in images:
        for _ in range(G):
            (x, y), (width, height) = draw.integers(0, 40, 2), draw.integers(20, 61, 2)
            crop = crop_bbox(image, (int(x), int(y), int(x + width), int(y + height)))
            prompts.append(answerer_prompt(QUESTION, [image, crop]))
    return [prompts]


def measure(way: str, processor: Any, rows: list[list]) -> tuple[float, int]:
    """Return CPU seconds of this process and bytes handed over."""
    tiling = tiling_of(processor, torch.device("cuda")) if way == "levels" else None
    prepare(processor, rows[0][:1], torch.bfloat16, tiling)  # warms up
    start, handed_over = time.process_time(), 0
    for prompts in rows:
        handed_over += size_of(prepare(processor, prompts, torch.bfloat16, tiling))
    return time.process_time() - start, handed_over


def size_of(prepared: Prepared) -> int:
    """Bytes of the image tensors."""
    return sum(tensor.nbytes for image in prepared.images.values() for tensor in image.tensors.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest_edge", type=positive, default=512)
    parser.add_argument("--images", type=positive, default=16)
    parser.add_argument("--reward", action="store_true", help="a GRPO step's crops, in the training process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    processor = make_processor(args.longest_edge)
    images = [open_image(photo) for photo in photos(args.images)]
    rows = rows_of_a_step(images) if args.reward else rows_of_images(images)
    shown = sum(len({id(image) for _, images in prompts for image in images}) for prompts in rows)
    print(f"{shown} images at {args.longest_edge} px, one thread, torch {torch.__version__}")
    results = {way: measure(way, processor, rows) for way in ("tiles", "levels")}
    for way, (seconds, size) in results.items():
        print(f"{way:7} {shown / seconds:8.1f} images/s, {seconds:.2f} s, {size / shown / 1e6:.2f} MB an image")
    (tile_seconds, tile_bytes), (seconds, size) = results["tiles"], results["levels"]
    print(f"{tile_seconds / seconds:.1f} times as fast, {tile_bytes / size:.1f} times fewer bytes")


if __name__ == "__main__":
    main()
