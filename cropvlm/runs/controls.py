"""Controls: what the answerer sees in the crop's place, to find out where a gain comes from.

Each control is one more answer to every question. Its boxes follow from the cropper's boxes, the question ids and which
rows share an image: they are the same on every machine. A row with an invalid box shows the full image twice, one that
needs no crop shows it once, as ever.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from cropvlm.boxes import Bbox, expand_bbox, format_bbox, is_not_needed, parse_bbox, pct_to_px
from cropvlm.crops import full_and_crop
from cropvlm.runs.provenance import image_checksums
from cropvlm.runs.scoring import question_keys

# name -> what is shown, and what its difference from the crop or from no crop isolates
CONTROLS = {
    "full_twice": "the full image again: the tokens of one more image",
    "no_detail": "the crop as the answerer's full view shows it, enlarged: the place without new pixels",
    "elsewhere": "a box of equal size that does not touch the cropper's: any detail",
    "centre": "the box from 25 to 75%: a prior",
    "wider": "the cropper's box grown to four times its area: boxes that are too tight",
    "crop_alone": "the crop without the full image: whether the full view is needed",
    "shuffled": "the box of the next row with another image: the statistics of boxes",
    "partner": "the box of another question about the same image: whether the question steered it",
}


def control_boxes(control: str, boxes: Sequence[str], rows: Any) -> list[str | None]:
    """The text of the box that `control` shows for each row; None for a row that it leaves out.

    boxes: the cropper's texts. rows: the `Dataset` that they are for.
    """

    def shown(text: str, question_id: str | int) -> str:
        bbox_pct = parse_bbox(text)
        match control:
            case "full_twice":
                return "[0, 0, 100, 100]."
            case "centre":
                return "[25, 25, 75, 75]."
            case "elsewhere" if bbox_pct:
                return format_bbox(box_elsewhere(bbox_pct, question_id))
            case "wider" if bbox_pct:
                return format_bbox(expand_bbox(bbox_pct, 100, 100, area_multiplier=4))
        return text

    if control in ("shuffled", "partner"):
        texts = [None if j is None else boxes[j] for j in other_rows(control, rows)]
    else:
        texts = list(map(shown, boxes, rows["question_id"]))
    return [own if is_not_needed(own) else text for own, text in zip(boxes, texts, strict=True)]


def other_rows(control: str, rows: Any) -> list[int | None]:
    """The row whose box each row is shown: the next one, the first after the last, that fits; None where none does.

    Reads every image, and decodes none.
    """
    images, cycles = image_checksums(rows), "cycle_category" in rows.column_names
    questions = question_keys(rows) if cycles else list(rows["question"])  # HR-Bench asks each several times
    n, sharing = len(rows), defaultdict(list)  # checksum of an image -> the rows that show it
    for i, key in enumerate(images):
        sharing[key].append(i)

    def fitting(i: int) -> Iterator[int]:
        if control == "shuffled":
            return (j for j in chain(range(i + 1, n), range(i)) if images[j] != images[i])
        return (j for j in sorted(sharing[images[i]], key=lambda j: (j < i, j)) if questions[j] != questions[i])

    return [next(fitting(i), None) for i in range(n)]


def box_elsewhere(bbox_pct: Bbox, question_id: str | int) -> Bbox:
    """A box of the same size, drawn by the question id from those with the least overlap, at best 1% of a side away."""
    x1, y1, x2, y2 = bbox_pct
    width, height = x2 - x1, y2 - y1
    lefts, tops = np.arange(int(100 - width) + 1), np.arange(int(100 - height) + 1)
    shared_x = np.minimum(lefts + width, x2 + 1) - np.maximum(lefts, x1 - 1)
    shared_y = np.minimum(tops + height, y2 + 1) - np.maximum(tops, y1 - 1)
    overlap = shared_y.clip(0)[:, None] * shared_x.clip(0)  # (tops, lefts)
    places = np.argwhere(overlap == overlap.min())
    seed = int.from_bytes(hashlib.sha256(repr(question_id).encode()).digest()[:8])
    top, left = places[seed % len(places)].tolist()
    return left, top, left + width, top + height


def shown_images(control: str, image: Image.Image, text: str, seen_size: Callable) -> list[Image.Image]:
    """The images that the answerer gets. seen_size: (width, height) of an image -> those at which it is seen."""
    bbox_pct = parse_bbox(text)
    if control == "crop_alone":
        return full_and_crop(image, text)[-1:]
    if control != "no_detail" or bbox_pct is None:
        return full_and_crop(image, text)
    # The crop's place in what is seen, enlarged to the crop's own size: as many tokens, no pixel that was not seen.
    view = image.resize(tuple(map(min, image.size, seen_size(image.size))), Image.Resampling.LANCZOS)
    left, top, right, bottom = pct_to_px(bbox_pct, *image.size)
    x, y = view.width / image.width, view.height / image.height
    place = (left * x, top * y, right * x, bottom * y)
    return [image, view.resize((right - left, bottom - top), Image.Resampling.BICUBIC, place)]
