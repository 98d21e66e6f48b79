"""The prompts of every row of a data set: the cropper's, and the answerer's with and without the crop."""

from typing import Any

from cropvlm.crops import crop_size, full_and_crop
from cropvlm.data.images import image_size, open_image
from cropvlm.errors import UnreadableImage
from cropvlm.prompts import BRIEF_ANSWER, Prompt, answerer_prompt, cropper_messages

BASE, CROPVLM = "base", "cropvlm"  # an answer without the crop, and with it


class BoxPrompts:
    """The cropper's prompt of every row."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        return [(cropper_messages(row["question"]), [open_image(row["image"])])]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        try:
            return [image_size(self.rows[i]["image"])]
        except UnreadableImage:
            return []


class AnswerPrompts:
    """The answerer's prompts of every row, one per mode; all show the same full image.

    rows: with `question` and `image`. boxes: the cropper's text by row; None without `cropvlm` among the modes.
    """

    def __init__(self, rows: Any, boxes: list[str] | None, modes: list[str], instruction: str = BRIEF_ANSWER):
        self.rows, self.boxes, self.modes, self.instruction = rows, boxes, modes, instruction

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        full = open_image(row["image"])
        images = {BASE: [full]}
        if CROPVLM in self.modes:
            images[CROPVLM] = full_and_crop(full, self.boxes[i])
        return [answerer_prompt(row["question"], images[mode], self.instruction) for mode in self.modes]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        try:
            full = image_size(self.rows[i]["image"])
        except UnreadableImage:
            return []
        crop = crop_size(full, self.boxes[i]) if CROPVLM in self.modes else None
        return [full] if crop is None else [full, crop]
