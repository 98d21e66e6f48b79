"""The teacher's report: counts and cut points, and a picture of some boxes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cropvlm.boxes import area_cut_points, bbox_area_pct, px_to_pct
from cropvlm.data.images import open_image
from cropvlm.runs.drawing import INK, contact_sheet, tile
from cropvlm.teacher import GrownBox

SHEET_COLUMNS, SHEET_ROWS, TILE = 6, 4, 240  # 24 boxes, pixels a side
TEACHER_COLOR, GROWN_COLOR = "#d62728", "#1f77b4"


def summarise(
    boxes: list[GrownBox], sources: Sequence[str], cut_points: Sequence[float], growth: Sequence[float]
) -> dict:
    """Return the counts of `teacher_report.json`; areas are shares of the image (0..1).

    sources: of each box. cut_points: over all boxes; `cut_points_of_real_boxes` are those without whole-image fallbacks
    and boxes without area. growth: area multipliers, smallest fifth first.
    """
    real = [box.area for box in boxes if box.kind == "box" and box.area > 0]
    counts, boxes_of = _counts(boxes), {name: [] for name in sources}
    for box, source in zip(boxes, sources, strict=True):
        boxes_of[source].append(box)
    return {
        "rows": counts["rows"],
        "responses": counts["responses"],
        "whole_image_fallbacks": sum(box.kind != "box" for box in boxes),
        "boxes_without_area": sum(box.area == 0 for box in boxes),
        "boxes_without_area_after_growth": sum(bbox_area_pct(box.bbox_pct) == 0 for box in boxes),
        "growth": list(growth),
        "cut_points": list(cut_points),
        "cut_points_of_real_boxes": list(area_cut_points(real)) if real else None,
        "rows_by_fifth": counts["rows_by_fifth"],
        "mean_area_before": sum(box.area for box in boxes) / len(boxes),
        "mean_area_after": sum(bbox_area_pct(box.bbox_pct) for box in boxes) / len(boxes) / 100,
        "sources": {name: _counts(part) for name, part in boxes_of.items()},
    }


def _counts(boxes: list[GrownBox]) -> dict:
    kinds, fifths = Counter(box.kind for box in boxes), Counter(box.fifth for box in boxes)
    return {"rows": len(boxes), "responses": dict(kinds.most_common()), "rows_by_fifth": [fifths[i] for i in range(5)]}


def draw_report(boxes: list[GrownBox], rows: Any) -> Image.Image:
    """Return a contact sheet of 24 rows with the teacher's and the grown box, and the question below.

    rows: the data set that the boxes belong to, images undecoded.
    """
    number = min(len(boxes), SHEET_COLUMNS * SHEET_ROWS)
    tiles = []
    for i in (i * len(boxes) // number for i in range(number)):  # evenly, so that every large source shows
        row, box = rows[i], boxes[i]
        drawn = [(px_to_pct(box.bbox_px, *box.size), TEACHER_COLOR), (box.bbox_pct, GROWN_COLOR)]
        question = [(row["question"], INK)]
        image = open_image(row["image"])
        tiles.append(tile(image, (TILE - 8, TILE - 8), boxes=drawn, lines=question, font_size=10))
    return contact_sheet(tiles, SHEET_COLUMNS)
