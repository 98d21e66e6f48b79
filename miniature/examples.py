"""Draw the README's picture: four questions of the miniature with the cropper's box, the crop and both answers.

    python3 -m miniature.examples --output docs/examples.png

takes the first question about each of the first four held-out images, whether or not the answers are right.
"""

import argparse
from pathlib import Path

from PIL import Image

from cropvlm.boxes import parse_bbox
from cropvlm.crops import crop_or_full_image
from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.runs.cli import ArgumentParser, run
from cropvlm.runs.drawing import INK, LINE, contact_sheet, tile
from miniature.table import Setting, read_settings, verdict

COUNT, SIDE, COLOR = 4, 260, "#1f77b4"


def first_of_each_image(rows) -> list[int]:
    """Return the index of the first question about each image, in their order."""
    seen: dict[bytes, int] = {}
    for i, source in enumerate(rows["image"]):
        seen.setdefault(source["bytes"], i)
    return list(seen.values())


def draw(rows, settings: dict[str, Setting], indices: list[int]) -> Image.Image:
    """Return a column for each question: the image with its box above the crop, each with the answer from it."""
    images = [open_image(rows[i]["image"]) for i in indices]
    texts = [settings["GRPO"].boxes[i] for i in indices]
    size = (SIDE, SIDE + 2 * LINE)
    tiles = []
    for i, image, text in zip(indices, images, texts, strict=True):
        boxes = [(bbox, COLOR)] if (bbox := parse_bbox(text)) else []
        answer, color = verdict(settings["no crop"], i)
        lines = [(rows[i]["question"], INK), (f"without the crop: {answer}", color)]
        tiles.append(tile(image, size, boxes=boxes, lines=lines))
    for i, image, text in zip(indices, images, texts, strict=True):
        answer, color = verdict(settings["GRPO"], i)
        lines = [(f"box: {text.strip()}", COLOR), (f"with the crop: {answer}", color)]
        tiles.append(tile(crop_or_full_image(image, text)[0], size, frame=COLOR, lines=lines))
    return contact_sheet(tiles, len(indices))


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_path", default="datasets/miniature")
    parser.add_argument("--name", default="miniature")
    parser.add_argument("--predictions", type=Path, default=Path("predictions"))
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows = load_rows(args.dataset_path, "test")
    settings = read_settings(args.predictions, args.name, args.name, rows)
    draw(rows, settings, first_of_each_image(rows)[:COUNT]).save(args.output)


if __name__ == "__main__":
    run(main)
