"""The teacher's boxes for people to look at: counts and cut points, and a picture."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cropvlm.boxes import area_cut_points, bbox_area_pct, px_to_pct
from cropvlm.data.images import open_image
from cropvlm.runs.drawing import INK, contact_sheet, new_figure, tile
from cropvlm.teacher import GrownBox

SHEET_COLUMNS, SHEET_ROWS, TILE = 6, 4, 240  # 24 boxes, pixels a side
TEACHER_COLOR, GROWN_COLOR = "#d62728", "#1f77b4"
# Bins of the histogram: relative area, ten a decade from 0.01% to the whole image; smaller boxes count in the first.
DECADES, BINS_A_DECADE = 4, 10


def summarise(
    boxes: list[GrownBox], sources: Sequence[str], cut_points: Sequence[float], growth: Sequence[float]
) -> dict:
    """Return the counts of `teacher_report.json`; areas are shares of the image (0..1).

    Args:
        sources: the source of each box.
        cut_points: those used, over all boxes. Whole-image fallbacks and boxes without area count in them;
            `cut_points_of_real_boxes` leaves both out.
        growth: area multipliers, smallest fifth first.
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
    """Return a histogram of relative areas before and after growth above a contact sheet of 24 rows' boxes.

    rows: the data set that the boxes belong to, images undecoded.
    """
    number = min(len(boxes), SHEET_COLUMNS * SHEET_ROWS)
    shown = [i * len(boxes) // number for i in range(number)]  # evenly, so that every large source shows
    sheet = contact_sheet([_draw_tile(rows[i], boxes[i]) for i in shown], SHEET_COLUMNS)
    return Image.fromarray(np.vstack([_draw_histogram(boxes), np.asarray(sheet)]))


def _draw_histogram(boxes: list[GrownBox]) -> np.ndarray:
    """Return the levels of a picture as wide as the sheet: boxes by relative area, the teacher's and the grown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import

    areas = {
        "of the teacher": [box.area for box in boxes],
        "grown": [bbox_area_pct(box.bbox_pct) / 100 for box in boxes],
    }
    bins = np.logspace(-DECADES, 0, DECADES * BINS_A_DECADE + 1)
    figure = new_figure(SHEET_COLUMNS * TILE / 100, TILE / 100)
    axes = figure.subplots()
    clipped = [np.clip(values, bins[0], bins[-1]) for values in areas.values()]
    axes.hist(clipped, bins, label=[*areas], color=[TEACHER_COLOR, GROWN_COLOR])
    axes.set(xscale="log", xlim=(bins[0], bins[-1]), xlabel="area of the box, share of the image", ylabel="boxes")
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.legend(title=f"{len(boxes)} boxes", frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _draw_tile(row: dict, box: GrownBox) -> Image.Image:
    """Return the image with the teacher's and the grown box, and the question below."""
    drawn = [(px_to_pct(box.bbox_px, *box.size), TEACHER_COLOR), (box.bbox_pct, GROWN_COLOR)]
    question = [(row["question"], INK)]
    return tile(open_image(row["image"]), (TILE - 8, TILE - 8), boxes=drawn, lines=question, font_size=10)
