"""GRPO with a price for crops (`train_grpo.py --crop_cost`): the policy learns whether a row needs one.

The reward becomes validity + U - L x (visual tokens of the crop / of the full image), in which a text that begins as
`Not needed.` is valid, costs nothing, and has the U of the full image alone. Advantages shift only within a group: L
decides by the spread of what crops gain, not by its mean, and a group without one `Not needed.` learns nothing of it.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cropvlm.boxes import begins_not_needed, parse_bbox
from cropvlm.crops import crop_size
from cropvlm.models.batches import image_cost
from cropvlm.rewards import Completion, completion_text

logger = logging.getLogger(__name__)

STEPS = 20  # that a policy decides all alike before that is called a collapse


def decision_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Return 1 for each completion that is a valid box or begins as `Not needed.`, 0 for any other text."""
    texts = map(completion_text, completions)
    return [float(begins_not_needed(text) or parse_bbox(text) is not None) for text in texts]


class CropCostReward:
    """Minus the price of each crop, 0 for `Not needed.`; an invalid box pays for its corner.

    price: of a crop with as many visual tokens as the full image. processor: of the answerer.
    """

    __name__ = "crop_cost_reward"  # what TRL logs it as

    def __init__(self, price: float, processor: Any):
        self.price, self.tokens = price, image_cost(processor) or (lambda size: 1)  # tiles or patches, of one size each

    def __call__(self, completions: Sequence[Completion], image: Sequence[Image.Image], **columns: Any) -> list[float]:
        return [self._reward(completion_text(text), full.size) for text, full in zip(completions, image, strict=True)]

    def _reward(self, text: str, full: tuple[int, int]) -> float:
        if begins_not_needed(text):
            return 0.0
        return -self.price * self.tokens(crop_size(full, text) or (2, 2)) / self.tokens(full)


class CollapseWarning:
    """Tells once that the policy has decided all rows alike for `STEPS` steps."""

    def __init__(self):
        self.steps, self.told = deque(maxlen=STEPS), False

    def __call__(self, not_needed: Sequence[float]) -> None:
        """not_needed: 0 or 1 for each completion of a step."""
        self.steps.append(set(not_needed))
        if self.steps.count({not_needed[0]}) == STEPS and not self.told:
            self.told = True
            asked = "never asks for a crop; lower" if not_needed[0] else "always asks for a crop; raise"
            logger.warning("for %d steps the policy %s --crop_cost, or begin with SFT on labelled rows", STEPS, asked)
