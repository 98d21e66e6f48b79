"""The questions of a pair to look at: thumbnails, box, answers and scores of each."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cropvlm.boxes import Bbox, is_not_needed
from cropvlm.crops import crop_bbox
from cropvlm.data.images import open_image
from cropvlm.errors import UnreadableImage
from cropvlm.runs.drawing import fit
from reporting.pairs import Pair

IMAGE_SIDE, CROP_SIDE = 420, 280  # px of a thumbnail, at most
PICTURE_BYTES = {IMAGE_SIDE: 28_000, CROP_SIDE: 14_000}  # 300 examples in base64: 17 MB
TEXT_LENGTH = 1000  # characters of a question, an answer or a box text, at most
QUALITIES = (80, 65, 45, 25, 10)


@dataclass(frozen=True)
class Example:
    """One question. Pictures are data URIs, None where the image cannot be read; scores are 0 to 100."""

    question_id: str
    question: str
    references: list[str]
    image: str | None
    crop: str | None
    bbox_pct: Bbox | None
    box_text: str | None  # None where no boxes are known
    before: str
    after: str
    before_score: float
    after_score: float
    cause: str | None = None  # of a loss, see `reporting.gains`

    @property
    def gain(self) -> float:
        return self.after_score - self.before_score

    @property
    def move(self) -> str:
        return "better" if self.gain > 0 else "worse" if self.gain < 0 else "equal"

    @property
    def invalid_box(self) -> bool:
        return self.box_text is not None and self.bbox_pct is None and not is_not_needed(self.box_text)


def examples(pair: Pair, count: int, causes: Sequence[str | None] | None = None) -> list[Example]:
    """Return at most `count` questions of a pair, the largest gain first; of more, evenly from that order.

    causes: of each scored row's loss.
    """
    order = np.argsort(-pair.gains, kind="stable")
    if len(order) > count:
        order = order[np.linspace(0, len(order) - 1, count).astype(int)]
    return [_example(pair, int(i), causes[i] if causes else None) for i in order]


def _example(pair: Pair, i: int, cause: str | None) -> Example:
    """Return scored row `i`."""
    index = pair.after.scored.indices[i]
    row, bbox_pct = pair.after.rows[index], pair.after.bboxes[i]
    image = crop = None
    try:
        opened = open_image(row["image"])
        image = data_uri(opened, IMAGE_SIDE)
        crop = data_uri(crop_bbox(opened, bbox_pct), CROP_SIDE) if bbox_pct else None
    except UnreadableImage:
        pass
    texts = {
        "question_id": str(row["question_id"]),
        "question": row["question"],
        "before": pair.before.scored.answers[i],
        "after": pair.after.scored.answers[i],
    }
    boxes = pair.after.boxes
    return Example(
        **{name: _cut(text) for name, text in texts.items()},
        references=[_cut(text) for text in list(dict.fromkeys(row["answers"]))[:20]],
        image=image,
        crop=crop,
        bbox_pct=bbox_pct,
        box_text=None if boxes is None else _cut(pair.after.box_texts[i]),
        cause=cause,
        before_score=float(pair.before.scored.scores[i]),
        after_score=float(pair.after.scored.scores[i]),
    )


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else f"{text[:TEXT_LENGTH]}... ({len(text)} characters)"


def data_uri(image: Image.Image, side: int) -> str:
    """Return a JPEG of at most `side` px a side as a data URI, compressed until it keeps to `PICTURE_BYTES`."""
    if max(image.size) > side:
        image = fit(image, (side, side))
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= PICTURE_BYTES[side]:
            break
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
