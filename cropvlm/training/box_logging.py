"""Box statistics and pictures logged during GRPO."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from transformers.integrations import TensorBoardCallback

from cropvlm.boxes import bbox_area_pct, bbox_iou, parse_bbox, pct_to_px

PICTURE_PROMPTS = 4
PICTURE_SIDE = 480  # px
LINE = 18  # px
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def box_figures(texts: Sequence[str], rewards: Tensor, num_generations: int) -> dict[str, list[float]]:
    """Return the values whose means are logged, by the name that they are logged under.

    Args:
        texts: completions (N), a group's in a row.
        rewards: their total rewards, (N,).
        num_generations: completions in a group, G.

    Returns: `boxes/valid` per completion (0 or 1); `boxes/area_pct` per valid box, in percent of the image;
        `boxes/pairwise_iou` per pair of valid boxes of a group; `boxes/groups_without_spread` per group: 1 where all
        rewards are exactly equal, so that no gradient but the KL's comes from it (TRL's `frac_reward_zero_std` misses
        those whose mean rounds).
    """
    bboxes = [parse_bbox(text) for text in texts]
    groups = [bboxes[i : i + num_generations] for i in range(0, len(bboxes), num_generations)]
    pairs = [pair for group in groups for pair in itertools.combinations(filter(None, group), 2)]
    by_group = rewards.view(-1, num_generations)  # (prompts, G)
    return {
        "boxes/valid": [float(bbox is not None) for bbox in bboxes],
        "boxes/area_pct": [bbox_area_pct(bbox) for bbox in bboxes if bbox],
        "boxes/pairwise_iou": [bbox_iou(*pair) for pair in pairs],
        "boxes/groups_without_spread": (by_group == by_group[:, :1]).all(1).float().tolist(),
    }


def draw_group(image: Image.Image, question: str, texts: Sequence[str], rewards: Sequence[float]) -> Image.Image:
    """Return a picture of one prompt: its boxes on the image, and below the question, each text and its reward."""
    font = ImageFont.load_default(size=12)
    canvas = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE + LINE * (len(texts) + 2)), "white")
    picture = ImageOps.contain(image, (PICTURE_SIDE, PICTURE_SIDE))
    draw = ImageDraw.Draw(picture)
    lines = [("black", question)]
    for text, reward, color in zip(texts, rewards, itertools.cycle(COLORS), strict=False):
        bbox_pct = parse_bbox(text)
        if bbox_pct is not None:
            left, top, right, bottom = pct_to_px(bbox_pct, *picture.size)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=2)
        lines.append((color, f"{reward:8.3f}  {text.strip()}"))
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for i, (color, line) in enumerate(lines):
        draw.text((4, PICTURE_SIDE + 4 + LINE * i), " ".join(line.split())[:80], fill=color, font=font)
    return canvas


def draw_groups(
    rows: Sequence[dict[str, Any]], texts: Sequence[str], rewards: Sequence[float], size: int
) -> Image.Image:
    """Return a picture of the first groups of a step, side by side.

    Args:
        rows: with `image` (PIL) and `question`, (N), a group's in a row.
        texts, rewards: of the completions, (N).
        size: completions in a group, G.
    """
    starts = range(0, min(len(rows) - size + 1, PICTURE_PROMPTS * size), size)
    groups = [
        draw_group(rows[i]["image"], rows[i]["question"], texts[i : i + size], rewards[i : i + size]) for i in starts
    ]
    picture = Image.new("RGB", (PICTURE_SIDE * len(groups), max(group.height for group in groups)), "white")
    for i, group in enumerate(groups):
        picture.paste(group, (PICTURE_SIDE * i, 0))
    return picture


def log_picture(picture: Image.Image, output_dir: str, step: int, callbacks: Sequence[Any]) -> None:
    """Write `picture` to `{output_dir}/crops`, and to TensorBoard where one of the trainer's callbacks writes there."""
    folder = Path(output_dir) / "crops"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"step-{step:06d}.png")
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image("crops", np.asarray(picture), step, dataformats="HWC")
