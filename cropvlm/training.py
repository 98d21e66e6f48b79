"""Rows to train on."""

import logging
from collections import Counter
from typing import Any

from datasets import Dataset

from cropvlm.boxes import format_bbox, parse_bbox
from cropvlm.data.rows import then_transform
from cropvlm.encoding import chat_text, without_placeholders
from cropvlm.errors import UserError
from cropvlm.modeling import END_OF_UTTERANCE
from cropvlm.prompts import cropper_messages
from cropvlm.trainers.training_data import open_training_image

logger = logging.getLogger(__name__)

PIXELS_FROM = 0.2  # share of boxes beyond 100 from which on they are taken for pixels, not for a few mistakes


def check_units(bboxes: list[Any]) -> None:
    """Raise `UserError` for boxes in fractions of 1 or in pixels, some of which would pass as percent."""
    boxes = [bbox for bbox in bboxes if _is_four_numbers(bbox)]
    wanted = "expected percent of width and height, 0..100"
    fractions = [bbox for bbox in boxes if max(bbox) <= 1 and any(value % 1 for value in bbox)]
    if fractions or (boxes and all(max(bbox) <= 1 for bbox in boxes)):
        example = (fractions or boxes)[0]
        raise UserError(f"the column bbox holds fractions of 1, such as {example}; {wanted}")
    beyond = [bbox for bbox in boxes if max(bbox) > 100]
    if len(beyond) > PIXELS_FROM * len(boxes):
        raise UserError(f"{len(beyond)} of {len(boxes)} boxes reach beyond 100, such as {beyond[0]}; {wanted}")


def _is_four_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)


def bbox_problem(bbox: Any) -> str | None:
    """Return why `bbox` is not a box in percent, in words to count by; None if it is one."""
    if not _is_four_numbers(bbox):
        return "not four numbers"
    if not all(0 <= value <= 100 for value in bbox):
        return "outside of 0..100"
    # The growth's truncation to whole percents makes some without an area.
    return None if parse_bbox(format_bbox(bbox)) else "without area"


def prompt_completion_rows(rows: Dataset, processor: Any) -> Dataset:
    """Return rows that read as `prompt`, `completion` (texts) and `image` (PIL), made when they are needed.

    Rows whose box is invalid are left out and counted. Raises `UserError` for boxes that are all invalid or not in
    percent.
    """
    problems = list(map(bbox_problem, rows["bbox"][:]))
    counts = Counter(filter(None, problems))
    found = ", ".join(f"{count} {problem}" for problem, count in counts.items())
    usable = [i for i, problem in enumerate(problems) if problem is None]
    if not usable:
        raise UserError(f"no row has a valid bbox ({found}); expected 0 <= x1 < x2 <= 100 percent, likewise y1 and y2")
    check_units(rows["bbox"][:])
    if counts:
        logger.warning("%d of %d rows are left out by their bbox: %s", counts.total(), len(rows), found)

    def to_prompt_completion(batch: dict[str, list]) -> dict[str, list]:
        return {
            "prompt": [chat_text(processor, cropper_messages(question)) for question in batch["question"]],
            # The template would add a line break after the end of the turn, which inference never reaches.
            "completion": [f" {format_bbox(bbox)}{END_OF_UTTERANCE}" for bbox in batch["bbox"]],
            "image": list(map(open_training_image, batch["image"], batch["question_id"])),
        }

    return then_transform(rows.select(usable), to_prompt_completion)


def prompt_rows(rows: Dataset, image_token: str) -> Dataset:
    """Return rows that read as `prompt` (messages), `question`, `answers`, `question_id` and `image`, still encoded.

    TRL reads a step's rows again for each of its micro-batches; the trainer opens their images once.

    image_token: the processor's, which no question may hold: TRL takes the messages to its template as they are.
    """

    def to_prompts(batch: dict[str, list]) -> dict[str, list]:
        prompts = [without_placeholders(cropper_messages(question), image_token) for question in batch["question"]]
        return {"prompt": prompts} | {name: batch[name] for name in ("image", "question", "answers", "question_id")}

    return then_transform(rows, to_prompts)
