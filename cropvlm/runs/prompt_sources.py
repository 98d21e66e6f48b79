"""The prompts of every row of a data set: the cropper's, and the answerer's with and without the crop."""

from collections.abc import Callable
from typing import Any

from cropvlm.crops import crop_size
from cropvlm.data.images import image_size, open_image
from cropvlm.errors import UnreadableImage
from cropvlm.prompts import BRIEF_ANSWER, Prompt, answerer_prompt, cropper_messages
from cropvlm.runs.controls import shown_images

BASE, CROPVLM = "base", "cropvlm"  # an answer without the crop, and with it
WITHOUT_MORE = (BASE, "full_twice", "crop_alone")  # modes that show no image but the full one and the crop


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


class AnswerPrompts(BoxPrompts):
    """The answerer's prompts of every row, one per mode that has the row; all show the same full image.

    rows: with `question` and `image`. boxes: for each mode (`base`, `cropvlm` or a control) the text of every row's
    box; None where the mode leaves the row out. seen_size: see `cropvlm.runs.controls.shown_images`.
    """

    def __init__(
        self, rows: Any, boxes: dict[str, list], instruction: str = BRIEF_ANSWER, seen_size: Callable | None = None
    ):
        super().__init__(rows)
        self.boxes, self.instruction, self.seen_size = boxes, instruction, seen_size

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        full = open_image(row["image"])
        shown = [
            [full] if mode == BASE else shown_images(mode, full, texts[i], self.seen_size)
            for mode, texts in self.boxes.items()
            if texts[i] is not None
        ]
        return [answerer_prompt(row["question"], images, self.instruction) for images in shown]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        full = super().image_sizes(i)
        texts = [texts[i] for mode, texts in self.boxes.items() if mode not in WITHOUT_MORE and texts[i] is not None]
        return [*full, *filter(None, (crop_size(size, text) for size in full for text in texts))]
