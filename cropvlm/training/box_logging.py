"""What one sees of a GRPO run: figures of the boxes and pictures of them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from transformers.integrations import TensorBoardCallback

from cropvlm.boxes import bbox_area_pct, bbox_iou, parse_bbox, pct_to_px
from cropvlm.rewards import completion_text
from cropvlm.training.evaluation import CropAccuracyMixin
from cropvlm.training.saving import CardMixin
from cropvlm.training.shared_images import GroupedGRPOTrainer

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


class WatchedGRPOTrainer(CardMixin, CropAccuracyMixin, GroupedGRPOTrainer):
    """`GroupedGRPOTrainer` that logs figures of the boxes and, every so often, pictures of them.

    Args:
        log_crops_every: steps between two pictures in `{output_dir}/crops` and in TensorBoard; 0 draws none.
    """

    def __init__(self, log_crops_every: int = 0, **kwargs: Any):
        self.log_crops_every = log_crops_every
        super().__init__(**kwargs)

    def _calculate_rewards(self, inputs: list[dict], prompts: list, completions: list, *args: Any) -> Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, *args)  # (N of all processes, functions)
        rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
        local = [completion_text(completion) for completion in completions]
        if self.model.training:
            # A group may be spread over processes: every process works out the figures of all.
            for name, values in box_figures(gather_object(local), rewards, self.num_generations).items():
                for value in values:
                    self._log_metric(name, value)
            if (
                self.log_crops_every
                and self.state.global_step % self.log_crops_every == 0
                and self.is_world_process_zero()
                and len(inputs) >= self.num_generations  # else this process holds a part of one group alone
            ):
                self._draw(inputs, local, rewards.tolist())
        return by_function

    def _draw(self, inputs: list[dict], texts: list[str], rewards: list[float]) -> None:
        size = self.num_generations
        starts = range(0, min(len(inputs) - size + 1, PICTURE_PROMPTS * size), size)
        groups = [
            draw_group(inputs[i]["image"], inputs[i]["question"], texts[i : i + size], rewards[i : i + size])
            for i in starts
        ]
        picture = Image.new("RGB", (PICTURE_SIDE * len(groups), max(group.height for group in groups)), "white")
        for i, group in enumerate(groups):
            picture.paste(group, (PICTURE_SIDE * i, 0))
        folder = Path(self.args.output_dir) / "crops"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{self.state.global_step:06d}.png")
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("crops", np.asarray(picture), self.state.global_step, dataformats="HWC")
