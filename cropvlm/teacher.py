"""The training data: each source halved for SFT and GRPO, and a grown box from each response of the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from cropvlm import boxes
from cropvlm.boxes import GROWTH, Bbox
from cropvlm.errors import UserError


def halves(counts: Sequence[int], sft_share: float = 0.5) -> list[int]:
    """Return how many rows of each source, from its first one, are for SFT; the others are for GRPO.

    Each source is halved by itself, so that both parts hold every source. Of n rows n // 2 are for SFT, as in the
    release, which halves one data set.

    >>> halves([34602, 5])
    [17301, 2]
    """
    return [share_of(sft_share, count) for count in counts]


def share_of(share: float, rows: int) -> int:
    """The number of rows in a share, rounded down: 29 for 0.29 of 100, where floats make it 28.999999999999996."""
    return int(Fraction(str(share)) * rows)


def read_response(text: str, seen_size: tuple[int, int], size: tuple[int, int]) -> tuple[Bbox | None, str]:
    """Return the box that a response names, in pixels of the original image, and the kind of response.

    text: the teacher's raw response. seen_size, size: (width, height) of the image as the teacher saw it and as
    it is. A box that passes the edge is clipped. The kind is `box`, or the reason why the response has no box
    (None is returned for it): one of `boxes.unreadable_kind`, or `outside the image`.

    >>> read_response('{"bbox_2d": [28, 56, 56, 112]}', seen_size=(280, 560), size=(1000, 1000))
    ((100.0, 100.0, 200.0, 200.0), 'box')
    """
    bbox_px = boxes.parse_teacher_bbox(text)
    if bbox_px is None:
        return None, boxes.unreadable_kind(text)
    x1, y1, x2, y2 = bbox_px
    if x1 >= seen_size[0] or y1 >= seen_size[1] or x2 <= 0 or y2 <= 0:
        return None, "outside the image"
    return boxes.rescale_bbox(bbox_px, seen_size, size), "box"


@dataclass(frozen=True)
class GrownBox:
    """A teacher's box on its way to a training box.

    kind: of the response, see `read_response`; bbox_px: in pixels of the original, the whole image where the response
    names none; size: (width, height) of the image; area: of `bbox_px`, relative to the image (0..1); fifth: 0 (the
    smallest boxes) to 4, by area; bbox_pct: grown, in percent.
    """

    kind: str
    bbox_px: Bbox
    size: tuple[int, int]
    area: float
    fifth: int = 4
    bbox_pct: tuple[int, int, int, int] = (0, 0, 100, 100)


def grow(
    records: Sequence[dict], growth: Sequence[float] = GROWTH
) -> tuple[list[GrownBox | None], tuple[float, float, float, float]]:
    """Return the grown box of each record, None where it holds no response, and the cut points of relative area.

    A response without a box counts as the whole image. All boxes take part in the cut points, the areas at the
    borders of the fifths; a box of the i-th fifth, smallest first, grows to `growth[i]` times its area (the release's
    factors). Raises `UserError` if no record holds a response.
    """
    read = [_read_record(record) for record in records]
    areas = [box.area for box in read if box]
    if not areas:
        raise UserError(f"none of the {len(records)} rows could be boxed: {records[0]['error']}; check the data set")
    cut_points = boxes.area_cut_points(areas)
    return [box and _grown(box, boxes.area_fifth(box.area, cut_points), growth) for box in read], cut_points


def _grown(box: GrownBox, fifth: int, growth: Sequence[float]) -> GrownBox:
    return replace(box, fifth=fifth, bbox_pct=boxes.expand_bbox(box.bbox_px, *box.size, growth[fifth]))


def _read_record(record: dict) -> GrownBox | None:
    """The box of a record before it grows; None without a response."""
    if "teacher_response" not in record:
        return None
    width, height = record["size"]
    bbox_px, kind = read_response(record["teacher_response"], record["seen_size"], (width, height))
    x1, y1, x2, y2 = bbox_px = bbox_px or (0, 0, width, height)
    area = (x2 - x1) * (y2 - y1) / (width * height)
    return GrownBox(kind, bbox_px, (width, height), area)
