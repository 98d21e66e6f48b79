"""Figures and pictures of a step's boxes, worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from cropvlm.runs.drawing import LINE
from cropvlm.trainers.box_logging import COLORS, PICTURE_SIDE, box_figures, draw_group


def test_figures():
    texts = ["[0, 0, 50, 100].", "[25, 0, 75, 100].", "no box", "[0, 0, 10, 10].", "Not needed.", "[5, 5, 5, 9]."]
    rewards = torch.tensor([0.1, 0.2, 0.1, -3.7, -3.7, -3.7])
    figures = box_figures(texts, rewards, 3)
    assert figures["boxes/valid"] == [1, 1, 0, 1, 0, 0]
    assert figures["boxes/not_needed"] == [0, 0, 0, 0, 1, 0]
    assert figures["boxes/area_pct"] == [50, 50, 1]
    assert figures["boxes/pairwise_iou"] == pytest.approx([25 / 75])  # 25 of 75 percent of the width
    assert figures["boxes/groups_without_spread"] == [0, 1]


def test_spread_is_exact_and_a_step_may_have_no_valid_box():
    """Three equal rewards have no spread, though their float32 mean is another number; a last digit is one."""
    rewards = torch.tensor([-1.1, -1.1, -1.1, -1.1, -1.1, -1.0999999])
    figures = box_figures(["?"] * 6, rewards, 3)
    assert figures["boxes/groups_without_spread"] == [1, 0]
    assert figures["boxes/area_pct"] == figures["boxes/pairwise_iou"] == []


def test_picture():
    """A 1000 x 500 image becomes 480 x 240; the box 25..75% has its corner at (120, 60)."""
    picture = draw_group(Image.new("RGB", (1000, 500)), "Où est 東京?", ["[25, 25, 75, 75].", "broken"], [1.0, -2.0])
    assert picture.size == (PICTURE_SIDE, PICTURE_SIDE + 3 * LINE)  # the question and two texts
    pixels = np.asarray(picture)
    assert tuple(pixels[60, 120]) == ImageColor.getrgb(COLORS[0])
    assert tuple(pixels[120, 240]) == (0, 0, 0)  # the image itself
    text = pixels[PICTURE_SIDE:]
    assert (text != 255).any(), "the question and the rewards are written below"
