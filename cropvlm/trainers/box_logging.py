"""Box statistics and pictures logged during GRPO."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.integrations import TensorBoardCallback

from cropvlm.boxes import bbox_area_pct, bbox_iou, begins_not_needed, parse_bbox
from cropvlm.runs.drawing import INK, LINE, contact_sheet, tile

PICTURE_PROMPTS = 4
PICTURE_SIDE = 480  # px
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def box_figures(texts: Sequence[str], rewards: Tensor, num_generations: int) -> dict[str, list[float]]:
    """Return the values whose means are logged, by the name that they are logged under.

    `boxes/valid` and `boxes/not_needed` per completion (0 or 1); `boxes/area_pct` per valid box, in percent of the
    image; `boxes/pairwise_iou` per pair of valid boxes of a group; `boxes/groups_without_spread` per group: 1 where all
    rewards are exactly equal, so that no gradient but the KL's comes from it (TRL's `frac_reward_zero_std` misses those
    whose mean rounds).

    texts: completions (N), a group's in a row. rewards: their total rewards, (N,). num_generations: in a group, G.
    """
    bboxes = [parse_bbox(text) for text in texts]
    groups = [bboxes[i : i + num_generations] for i in range(0, len(bboxes), num_generations)]
    pairs = [pair for group in groups for pair in itertools.combinations(filter(None, group), 2)]
    by_group = rewards.view(-1, num_generations)  # (prompts, G)
    return {
        "boxes/valid": [float(bbox is not None) for bbox in bboxes],
        "boxes/not_needed": [float(begins_not_needed(text)) for text in texts],
        "boxes/area_pct": [bbox_area_pct(bbox) for bbox in bboxes if bbox],
        "boxes/pairwise_iou": [bbox_iou(*pair) for pair in pairs],
        "boxes/groups_without_spread": (by_group == by_group[:, :1]).all(1).float().tolist(),
    }


def draw_group(image: Image.Image, question: str, texts: Sequence[str], rewards: Sequence[float]) -> Image.Image:
    """Return a picture of one prompt: its boxes on the image, and below the question, each text and its reward."""
    colored = list(zip(texts, itertools.cycle(COLORS), strict=False))
    boxes = [(bbox_pct, color) for text, color in colored if (bbox_pct := parse_bbox(text)) is not None]
    written = [f"{reward:8.3f}  {text}" for text, reward in zip(texts, rewards, strict=True)]
    lines = [(question, INK), *zip(written, (color for _, color in colored), strict=True)]
    return tile(image, (PICTURE_SIDE, PICTURE_SIDE + LINE * len(lines)), boxes=boxes, lines=lines)


def log_crops(
    rows: Sequence[dict[str, Any]],
    texts: Sequence[str],
    rewards: Sequence[float],
    size: int,
    output_dir: str,
    step: int,
    callbacks: Sequence[Any],
) -> None:
    """Draw the first groups of a step side by side, into `{output_dir}/crops` and to TensorBoard if it is in use.

    rows: with `image` (PIL) and `question`, (N), a group's in a row. texts, rewards: of the completions, (N).
    size: completions in a group, G. callbacks: the trainer's.
    """
    starts = range(0, min(len(rows) - size + 1, PICTURE_PROMPTS * size), size)
    groups = [
        draw_group(rows[i]["image"], rows[i]["question"], texts[i : i + size], rewards[i : i + size]) for i in starts
    ]
    picture = contact_sheet(groups, columns=len(groups))
    folder = Path(output_dir) / "crops"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"step-{step:06d}.png")
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image("crops", np.asarray(picture), step, dataformats="HWC")
