"""Measure what the miniature's models can do before CropVLM begins, on scenes that they have never seen.

    python3 -m miniature.pretraining.examine --family smolvlm --model_path miniature/models/smolvlm

uses the real processor and greedy generation. A reader is asked for the text of every placard from [full image, crop],
where the crop is the placard's box enlarged 1, 1.5, 2 and 3 times a side; `smolvlm` also for a frame around it, and the
teacher for its outline.
"""

import argparse
import random
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from cropvlm import prompts
from cropvlm.boxes import parse_teacher_bbox
from cropvlm.generation import generate_texts
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.qwen import qwen_size
from cropvlm.runs.cli import ArgumentParser, run
from cropvlm.sets.asking import pixel_budget
from miniature.pretraining.families import FAMILIES
from miniature.pretraining.lessons import one_image_turn
from miniature.tiny_models import TILE
from miniature.world import Placard, ask, draw_scene

ZOOMS = (1.0, 1.5, 2.0, 3.0)


def questions(seed: int, scenes: int) -> Iterator[tuple[Image.Image, Placard, str]]:
    """A canvas, a placard on it and a question about it, for every placard of every scene."""
    for i in range(scenes):
        rng = random.Random(f"examination-{seed}-{i}")
        canvas, placards = draw_scene(rng)
        for placard in placards:
            yield canvas, placard, ask(rng, placard)


def crop_zoomed(canvas: Image.Image, placard: Placard, zoom: float) -> Image.Image:
    x1, y1, x2, y2 = placard.bbox_px
    grow_x, grow_y = (zoom - 1) * (x2 - x1) / 2, (zoom - 1) * (y2 - y1) / 2
    left, top = max(0, round(x1 - grow_x)), max(0, round(y1 - grow_y))
    return canvas.crop((left, top, min(canvas.width, round(x2 + grow_x)), min(canvas.height, round(y2 + grow_y))))


def print_reading(model, processor, asked: list) -> None:
    """Print the share of texts read correctly at each zoom, of words and of numbers."""
    numbers = np.array([placard.text.isdigit() for _, placard, _ in asked])
    for zoom in ZOOMS:
        images = [(canvas, crop_zoomed(canvas, placard, zoom)) for canvas, placard, _ in asked]
        messages = [prompts.answerer_messages(question, 2) for _, _, question in asked]
        texts = generate_texts(model, processor, messages, images, max_new_tokens=8)
        right = [
            prompts.clean_answer(text).lower() == placard.text
            for text, (_, placard, _) in zip(texts, asked, strict=True)
        ]
        right = 100 * np.array(right)
        figures = (right.mean(), right[~numbers].mean(), right[numbers].mean())
        print("crop of {:.1f} x its sides: {:.1f}% read, words {:.1f}%, numbers {:.1f}%".format(zoom, *figures))


def describe_center_errors(boxes: list[tuple[float, ...]], asked: list) -> str:
    """Distance of the boxes' centres from the placards', in percent of the canvas's sides, as text.

    boxes: in shares of the canvas (0..1).
    """
    errors = []
    for (x1, y1, x2, y2), (canvas, placard, _) in zip(boxes, asked, strict=True):
        left, top, right, bottom = placard.bbox_px
        across = abs((x1 + x2) - (left + right) / canvas.width)
        down = abs((y1 + y2) - (top + bottom) / canvas.height)
        errors.append(100 * max(across, down) / 2)
    return (
        f"centre off by {np.median(errors):.1f}% of the sides (median), 80% by at most {np.percentile(errors, 80):.1f}%"
    )


def print_framing(model, processor, asked: list) -> None:
    messages = [one_image_turn(f"{question.capitalize()}\nFrame it.") for _, _, question in asked]
    texts = generate_texts(model, processor, messages, [[canvas] for canvas, _, _ in asked], max_new_tokens=24)
    read = [[int(number) / 100 for number in re.findall(r"\d+", text)] for text in texts]
    usable = [i for i, numbers in enumerate(read) if len(numbers) == 4]
    print(
        f"{len(usable)} of {len(asked)} frames: "
        + describe_center_errors([read[i] for i in usable], [asked[i] for i in usable])
    )


def print_outlining(model, processor, model_path: str, asked: list) -> None:
    budget = pixel_budget(processor, model_path)
    messages = [prompts.teacher_messages(question) for _, _, question in asked]
    texts = generate_texts(model, processor, messages, [[canvas] for canvas, _, _ in asked], max_new_tokens=128)
    boxes = [parse_teacher_bbox(text) for text in texts]
    usable = [i for i, box in enumerate(boxes) if box is not None]
    shares = []
    for i in usable:
        width, height = qwen_size(asked[i][0].size, *budget)
        x1, y1, x2, y2 = boxes[i]
        shares.append((x1 / width, y1 / height, x2 / width, y2 / height))
    print(
        f"{len(usable)} of {len(asked)} outlines are boxes: "
        + describe_center_errors(shares, [asked[i] for i in usable])
    )


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model = load_model(args.model_path)
    processor = load_processor(args.model_path, TILE if args.family == "smolvlm" else None)
    asked = list(questions(args.seed, args.scenes))
    if FAMILIES[args.family].sees_crops:
        print_reading(model, processor, asked)
    if args.family == "smolvlm":
        print_framing(model, processor, asked)
    if args.family == "qwen":
        print_outlining(model, processor, args.model_path, asked)


if __name__ == "__main__":
    run(main)
