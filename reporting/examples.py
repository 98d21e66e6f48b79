"""The questions of a pair to look at: thumbnails, box, answers and scores of each."""

import base64
import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image

from cropvlm.boxes import is_not_needed
from cropvlm.crops import crop_bbox
from cropvlm.data.images import open_image
from cropvlm.errors import UnreadableImage
from cropvlm.runs.drawing import fit
from reporting.gains import Pair

IMAGE_SIDE, CROP_SIDE = 420, 280  # px of a thumbnail, at most
PICTURE_BYTES = {IMAGE_SIDE: 28_000, CROP_SIDE: 14_000}  # 300 examples in base64: 17 MB
TEXT_LENGTH = 1000  # characters of a question, an answer or a box text, at most
QUALITIES = (80, 65, 45, 25, 10)


def examples(pair: Pair, count: int) -> list[dict[str, Any]]:
    """Return at most `count` questions of a pair, the largest gain first; of more, evenly from that order.

    Pictures are data URIs, None where the image cannot be read; scores are 0 to 100; `box_text` is None where no boxes
    are known. cause: of a loss, where the pair has controls.
    """
    order = np.argsort(-pair.gains, kind="stable")
    if len(order) > count:
        order = order[np.linspace(0, len(order) - 1, count).astype(int)]
    return [_example(pair, int(i)) for i in order]


def _example(pair: Pair, i: int) -> dict[str, Any]:
    """Return scored row `i`."""
    before, after = pair.before.scored, pair.after.scored
    row, bbox_pct, box_text = pair.after.rows[after.indices[i]], pair.after.bboxes[i], pair.after.box_texts[i]
    image = crop = None
    with contextlib.suppress(UnreadableImage):
        opened = open_image(row["image"])
        image = data_uri(opened, IMAGE_SIDE)
        crop = data_uri(crop_bbox(opened, bbox_pct), CROP_SIDE) if bbox_pct else None
    return {
        "question_id": _cut(str(row["question_id"])),
        "question": _cut(row["question"]),
        "references": [_cut(text) for text in list(dict.fromkeys(row["answers"]))[:20]],
        "image": image,
        "crop": crop,
        "bbox_pct": bbox_pct,
        "box_text": box_text and _cut(box_text),
        "invalid_box": box_text is not None and bbox_pct is None and not is_not_needed(box_text),
        "before": _cut(before.answers[i]),
        "after": _cut(after.answers[i]),
        "before_score": float(before.scores[i]),
        "after_score": float(after.scores[i]),
        "gain": float(pair.gains[i]),
        "cause": pair.causes[i] if pair.controls else None,
    }


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
