"""What the teacher did, for people to look at: counts and cut points, and a picture."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cropvlm.boxes import area_cut_points, bbox_area_pct, pct_to_px
from cropvlm.crops import open_image
from cropvlm.teacher.growing import GrownBox

SHEET_COLUMNS, SHEET_ROWS, TILE = 6, 4, 240  # 24 boxes, pixels a side
TEACHER_COLOR, GROWN_COLOR, INK = (214, 39, 40), (31, 119, 180), (40, 40, 40)
# Bins of the histogram: relative area, ten a decade from 0.01% to the whole image; smaller boxes count in the first.
DECADES, BINS_A_DECADE = 4, 10


def summarise(
    boxes: list[GrownBox], sources: Sequence[str], cut_points: Sequence[float], growth: Sequence[float]
) -> dict:
    """The counts of `teacher_report.json`.

    sources: the source of each box. Relative areas are shares of the image (0..1). "real boxes" leaves out whole-image
    fallbacks and boxes without area, which take part in the cut points that were used.
    """
    real = [box.area for box in boxes if box.kind == "box" and box.area > 0]
    names = list(dict.fromkeys(sources))
    by_source = {name: [box for box, source in zip(boxes, sources, strict=True) if source == name] for name in names}
    return {
        "rows": len(boxes),
        "responses": _kinds(boxes),
        "whole_image_fallbacks": sum(box.kind != "box" for box in boxes),
        "boxes_without_area": sum(box.area == 0 for box in boxes),
        "boxes_without_area_after_growth": sum(bbox_area_pct(box.bbox_pct) == 0 for box in boxes),
        "growth": list(growth),
        "cut_points": list(cut_points),
        "cut_points_of_real_boxes": list(area_cut_points(real)) if real else None,
        "rows_by_fifth": _fifths(boxes),
        "mean_area_before": sum(box.area for box in boxes) / len(boxes),
        "mean_area_after": sum(bbox_area_pct(box.bbox_pct) for box in boxes) / len(boxes) / 100,
        "sources": {
            name: {"rows": len(part), "responses": _kinds(part), "rows_by_fifth": _fifths(part)}
            for name, part in by_source.items()
        },
    }


def _kinds(boxes: list[GrownBox]) -> dict[str, int]:
    return dict(Counter(box.kind for box in boxes).most_common())


def _fifths(boxes: list[GrownBox]) -> list[int]:
    """Rows grown by the first to the fifth multiplier."""
    counts = Counter(box.fifth for box in boxes)
    return [counts[fifth] for fifth in range(5)]


def draw_report(boxes: list[GrownBox], rows: Any) -> Image.Image:
    """The histogram of relative areas before and after growth above a contact sheet of 24 rows' boxes.

    rows: the data set that the boxes belong to, images undecoded.
    """
    sheet_rows = _spread(len(boxes), SHEET_COLUMNS * SHEET_ROWS)
    histogram = _draw_histogram(boxes, SHEET_COLUMNS * TILE, TILE)
    height = TILE * (1 + math.ceil(len(sheet_rows) / SHEET_COLUMNS))
    picture = Image.new("RGB", (SHEET_COLUMNS * TILE, height), "white")
    picture.paste(histogram, (0, 0))
    for place, i in enumerate(sheet_rows):
        tile = _draw_tile(rows[i], boxes[i])
        picture.paste(tile, (place % SHEET_COLUMNS * TILE, TILE + place // SHEET_COLUMNS * TILE))
    return picture


def _spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly over `total`, so that every source of some size shows."""
    return [i * total // wanted for i in range(wanted)] if total > wanted else list(range(total))


def _draw_histogram(boxes: list[GrownBox], width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    before = _bin_counts([box.area for box in boxes])
    after = _bin_counts([bbox_area_pct(box.bbox_pct) / 100 for box in boxes])
    left, right, top, bottom = 20, width - 20, 30, height - 24
    step = (right - left) / len(before)
    scale = (bottom - top) / max(before + after)
    for i, counts in enumerate(zip(before, after, strict=True)):
        for half, (count, color) in enumerate(zip(counts, (TEACHER_COLOR, GROWN_COLOR), strict=True)):
            x = left + (i + half / 2) * step
            draw.rectangle((x, bottom - count * scale, x + step / 2 - 1, bottom), fill=color)
    draw.line((left, bottom, right, bottom), fill=INK)
    for decade in range(DECADES + 1):
        x = left + decade * BINS_A_DECADE * step
        draw.text((x, bottom + 4), f"{100 * 10.0 ** (decade - DECADES):g}%", fill=INK, font=font, anchor="ma")
    draw.text((left, 6), f"area of the box, share of the image: {len(boxes)} boxes", fill=INK, font=font)
    draw.text((right, 6), "grown", fill=GROWN_COLOR, font=font, anchor="ra")
    draw.text((right - 60, 6), "of the teacher", fill=TEACHER_COLOR, font=font, anchor="ra")
    return picture


def _bin_counts(areas: list[float]) -> list[int]:
    last = DECADES * BINS_A_DECADE - 1
    exponents = [math.log10(area) + DECADES if area > 0 else 0 for area in areas]
    counts = Counter(min(max(int(exponent * BINS_A_DECADE), 0), last) for exponent in exponents)
    return [counts[i] for i in range(last + 1)]


def _draw_tile(row: dict, box: GrownBox) -> Image.Image:
    """The image with the teacher's and the grown box, and the question below."""
    tile, font = Image.new("RGB", (TILE, TILE), "white"), ImageFont.load_default(10)
    image = open_image(row["image"])
    scale = min((TILE - 8) / image.width, (TILE - 24) / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    tile.paste(image.resize(size), (4, 4))
    draw = ImageDraw.Draw(tile)
    grown = pct_to_px(box.bbox_pct, *box.size)
    for bbox, color, line in ((box.bbox_px, TEACHER_COLOR, 2), (grown, GROWN_COLOR, 2)):
        draw.rectangle([4 + value * scale for value in bbox], outline=color, width=line)
    draw.text((4, TILE - 16), row["question"][:46], fill=INK, font=font)
    return tile
