"""What one sees of a GRPO run: figures of the boxes and pictures of them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from transformers.integrations import TensorBoardCallback

from cropvlm.boxes import bbox_area_pct, bbox_iou, parse_bbox
from cropvlm.drawing import INK, LINE, contact_sheet, tile
from cropvlm.rewards import completion_text
from cropvlm.training.evaluation import CropAccuracyMixin
from cropvlm.training.saving import CardMixin
from cropvlm.training.shared_images import GroupedGRPOTrainer

PICTURE_PROMPTS = 4
PICTURE_SIDE = 480  # px
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
    colored = list(zip(texts, itertools.cycle(COLORS), strict=False))
    boxes = [(bbox_pct, color) for text, color in colored if (bbox_pct := parse_bbox(text)) is not None]
    written = [f"{reward:8.3f}  {text}" for text, reward in zip(texts, rewards, strict=True)]
    lines = [(question, INK), *zip(written, (color for _, color in colored), strict=True)]
    return tile(image, (PICTURE_SIDE, PICTURE_SIDE + LINE * len(lines)), boxes=boxes, lines=lines)


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
        picture = contact_sheet(groups, columns=len(groups))
        folder = Path(self.args.output_dir) / "crops"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{self.state.global_step:06d}.png")
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("crops", np.asarray(picture), self.state.global_step, dataformats="HWC")
