"""Boxes: every text that holds one is read here, and every box is measured, grown and mapped here.

A box is `(x1, y1, x2, y2)`, top left and bottom right. Its name carries its unit: `bbox_pct` in percent of width and
height (0..100), `bbox_px` in pixels. Sizes are `(width, height)` in pixels.
"""

import math
import re
from collections.abc import Sequence

from cropvlm.prompts import without_reasoning

Bbox = tuple[float, float, float, float]

# Area multipliers of the teacher's boxes, smallest fifth of the boxes first (the release's).
GROWTH = (45, 10, 4, 2, 1)

NOT_NEEDED = "Not needed."  # what a cropper writes in a box's place where the full image will do

# The number of digits is bounded because int() refuses very long ones and float() makes them infinite.
_NUMBER = r"\s*([0-9]{1,3}(?:\.[0-9]+)?)\s*"
_BBOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]\s*\.?")
_INNERMOST_LIST = re.compile(r"\[([^\[\]]*)\]")
_BBOX_2D_LIST = re.compile(r"bbox_2d[^\w\]]*\[([^\[\]]*)\]")  # innermost too; the key may be quoted or escaped
_FENCED = re.compile(r"```\w*(.*?)(?:```|\Z)", re.DOTALL)
_TEACHER_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]*)?")


def parse_bbox(text: str) -> Bbox | None:
    """Read the cropper's box in percent, or None if `text` is not a valid box.

    Valid is exactly `[x1, y1, x2, y2]` with 0 <= x1 < x2 <= 100 and the same for y. White space and one final dot are
    free; any other character makes it invalid, so that the reward teaches the format that inference reads.
    Numbers stay as written: int without a decimal point, else float.

    >>> parse_bbox(" [10, 20, 30.5, 40].")
    (10, 20, 30.5, 40)
    """
    match = _BBOX.fullmatch(text.strip())
    if match is None:
        return None
    x1, y1, x2, y2 = bbox_pct = tuple(_number(group) for group in match.groups())
    return bbox_pct if x1 < x2 <= 100 and y1 < y2 <= 100 else None


def is_not_needed(text: str) -> bool:
    """Whether the cropper says that no crop is needed; any other text without a box is an invalid box."""
    return text.strip() == NOT_NEEDED


def begins_not_needed(text: str) -> bool:
    """Whether a text begins with the letter of `Not needed.`, as no box does: its first token is the decision.

    A policy that samples may misspell the rest; as an invalid box, such a text would teach it to ask for crops.
    """
    return text.strip().startswith(NOT_NEEDED[0])


def decide(texts: Sequence[str], needs: Sequence[float], threshold: float) -> list[str]:
    """The boxes whose need is at least `threshold`, and `Not needed.` for the others."""
    return [text if need >= threshold else NOT_NEEDED for text, need in zip(texts, needs, strict=True)]


def validity(text: str) -> float:
    """Return 1.0 for a valid box, 0.25 for `Not needed.`, 0.0 for anything else (the release's validity reward)."""
    return 0.25 if is_not_needed(text) else float(parse_bbox(text) is not None)


def format_bbox(bbox_pct: Sequence[float]) -> str:
    """Return the words that the cropper is trained to write: `[x1, y1, x2, y2].`, whole numbers without decimals."""
    x1, y1, x2, y2 = bbox_pct
    return f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}]."


def parse_teacher_bbox(text: str) -> Bbox | None:
    """Read the teacher's box, in pixels of the image as its processor resized it, or None if `text` holds no box.

    The box is the first readable list of a `bbox_2d` field; without such a field it is the first innermost `[...]`.
    What a model thinks aloud in `<think>` tags is left out, and a fenced block goes before the text around it. Numbers
    may be floats or quoted; reversed corners are sorted. The box may have no area or leave the image: see
    `rescale_bbox`.

    >>> parse_teacher_bbox('```json\\n[{"bbox_2d": ["30", 40.5, 10, 20], "label": "sign"}]\\n```')
    (10, 20, 30, 40.5)
    """
    corners = teacher_corners(text)
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def teacher_corners(text: str) -> Bbox | None:
    """Return the numbers of the teacher's box in the order in which it wrote them; None as `parse_teacher_bbox`."""
    return next(filter(None, map(_four_numbers, _teacher_lists(text))), None)


def unreadable_kind(text: str) -> str | None:
    """Say why `parse_teacher_bbox` finds no box in `text`, in words to count by; None if it finds one."""
    if parse_teacher_bbox(text) is not None:
        return None
    answer = without_reasoning(text)
    if not answer.strip():
        return "truncated" if text.strip() else "empty"  # cut off in its thoughts
    if "[" not in answer:
        return "no list"
    lists = _teacher_lists(text)
    if not lists:
        return "truncated"
    return "not numbers" if len(_values(lists[0])) == 4 else "not four values"


def _teacher_lists(text: str) -> list[str]:
    """The inside of the lists that may be the box: those of `bbox_2d`, else the first one."""
    answer = without_reasoning(text)
    fenced = next((block for block in _FENCED.findall(answer) if _INNERMOST_LIST.search(block)), answer)
    return _BBOX_2D_LIST.findall(fenced) or _INNERMOST_LIST.findall(fenced)[:1]


def _values(inside: str) -> list[str]:
    """The values of a list without their quotes; a comma after the last one is left out."""
    return [value.strip().strip("\"'\\").strip() for value in inside.rstrip().removesuffix(",").split(",")]


def _four_numbers(inside: str) -> Bbox | None:
    values = _values(inside)
    if len(values) != 4 or not all(_TEACHER_NUMBER.fullmatch(value) for value in values):
        return None
    return tuple(_number(value) for value in values)


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def px_to_pct(bbox_px: Sequence[float], width: int, height: int) -> Bbox:
    """Return the box in percent of width and height, not rounded."""
    x1, y1, x2, y2 = bbox_px
    # x * 100 / width, not x / width * 100: the latter makes 28.999999999999996 of 29 in 100.
    return x1 * 100 / width, y1 * 100 / height, x2 * 100 / width, y2 * 100 / height


def pct_to_px(bbox_pct: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels that a box touches, as `(left, top, right, bottom)`, right and bottom exclusive.

    For every valid box and every size from 1x1 on the result lies inside the image and holds at least one pixel.
    Raises ValueError for an image without pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width}x{height} px has no pixels to crop; expected at least 1x1")
    x1, y1, x2, y2 = bbox_pct
    left, right = _pixel_span(x1, x2, width)
    top, bottom = _pixel_span(y1, y2, height)
    return left, top, right, bottom


def _pixel_span(start_pct: float, stop_pct: float, length: int) -> tuple[int, int]:
    # Outwards, so that no touched pixel is lost; the clamps matter for slivers that rounding makes empty.
    start = min(max(math.floor(start_pct * length / 100), 0), length - 1)
    stop = min(max(math.ceil(stop_pct * length / 100), start + 1), length)
    return start, stop


def rescale_bbox(bbox_px: Sequence[float], from_size: tuple[int, int], to_size: tuple[int, int]) -> Bbox:
    """Map a box from an image of `from_size` (width, height) to the same image at `to_size`, clipped, not rounded."""
    (from_width, from_height), (to_width, to_height) = from_size, to_size
    x1, x2 = (min(max(x * to_width / from_width, 0), to_width) for x in (bbox_px[0], bbox_px[2]))
    y1, y2 = (min(max(y * to_height / from_height, 0), to_height) for y in (bbox_px[1], bbox_px[3]))
    return x1, y1, x2, y2


def bbox_area_pct(bbox_pct: Sequence[float]) -> float:
    """Return the box's share of the image area in percent (0..100)."""
    x1, y1, x2, y2 = bbox_pct
    return (x2 - x1) * (y2 - y1) / 100


def bbox_iou(bbox_a: Sequence[float], bbox_b: Sequence[float]) -> float:
    """Return intersection over union (0..1) of two boxes in the same unit; 0 if neither has an area."""
    width = min(bbox_a[2], bbox_b[2]) - max(bbox_a[0], bbox_b[0])
    height = min(bbox_a[3], bbox_b[3]) - max(bbox_a[1], bbox_b[1])
    intersection = max(width, 0) * max(height, 0)
    area_a, area_b = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (bbox_a, bbox_b))
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else 0.0


def area_cut_points(areas: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the areas at indices n//5, 2n//5, 3n//5 and 4n//5 of the sorted list; ValueError without areas."""
    if not areas:
        raise ValueError("no areas to take cut points of; expected at least one box")
    ordered = sorted(areas)
    c1, c2, c3, c4 = (ordered[k * len(ordered) // 5] for k in (1, 2, 3, 4))
    return c1, c2, c3, c4


def area_fifth(area: float, cut_points: Sequence[float]) -> int:
    """Return the fifth that the area of a box lies in: 0 below the first cut point to 4 from the last on."""
    return sum(area >= cut_point for cut_point in cut_points)


def expand_bbox(bbox_px: Sequence[float], width: int, height: int, area_multiplier: float) -> tuple[int, int, int, int]:
    """Grow a box to `area_multiplier` times its area and return it in percent, truncated to int.

    Centre and aspect ratio stay. A side that leaves the image pushes the opposite side by as much; then all is clamped
    to the image. Truncation can leave a thin box without width or height, as in the released experiment.
    """
    factor = math.sqrt(area_multiplier)
    x1, x2 = _grow_side(bbox_px[0], bbox_px[2], width, factor)
    y1, y2 = _grow_side(bbox_px[1], bbox_px[3], height, factor)
    x1, y1, x2, y2 = (int(value) for value in px_to_pct((x1, y1, x2, y2), width, height))
    return x1, y1, x2, y2


def _grow_side(start: float, stop: float, limit: int, factor: float) -> tuple[float, float]:
    centre, half = (start + stop) / 2, (stop - start) * factor / 2
    start, stop = centre - half, centre + half
    if start < 0:
        start, stop = 0, stop - start
    if stop > limit:
        start, stop = start - (stop - limit), limit
    return max(start, 0), stop
