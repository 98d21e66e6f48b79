"""From responses to training boxes: read, mapped back to the original, grown; worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sets import TEXTS, records

from cropvlm.boxes import rescale_bbox
from cropvlm.errors import UserError
from cropvlm.models.qwen import PixelBudget, qwen_size
from cropvlm.teacher import GrownBox, grow, read_response

SIDES = st.integers(min_value=1, max_value=9000)


@pytest.mark.parametrize("size", [(1023, 681), (7301, 5479), (3, 3000), (29, 27)])
def test_box_comes_back_from_the_size_that_the_teacher_saw(size):
    width, height = size
    seen_width, seen_height = seen = qwen_size(size, *PixelBudget())
    # The right lower quarter, in the teacher's pixels, is the right lower quarter of the original.
    text = f'{{"bbox_2d": [{seen_width / 2}, {seen_height / 2}, {seen_width}, {seen_height}]}}'
    bbox_px, kind = read_response(text, seen, size)
    assert kind == "box"
    assert bbox_px == pytest.approx((width / 2, height / 2, width, height), rel=1e-12)


@given(
    width=SIDES,
    height=SIDES,
    shares=st.tuples(*[st.floats(min_value=0, max_value=1, allow_subnormal=False)] * 4),
)
def test_mapping_there_and_back_is_exact(width, height, shares):
    x1, x2 = sorted((shares[0] * width, shares[2] * width))
    y1, y2 = sorted((shares[1] * height, shares[3] * height))
    seen = qwen_size((width, height), *PixelBudget())
    there = rescale_bbox((x1, y1, x2, y2), (width, height), seen)
    assert rescale_bbox(there, seen, (width, height)) == pytest.approx((x1, y1, x2, y2), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "bbox_px", "kind"),
    [
        ("[10, 20, 30, 40]", (20, 20, 60, 40), "box"),  # seen 100x100, in truth 200x100: x doubles
        ('```json\n[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]\n```', (20, 20, 60, 40), "box"),
        ("[30, 40, 10, 20]", (20, 20, 60, 40), "box"),  # reversed corners
        ('["10", "20", "30", "40"]', (20, 20, 60, 40), "box"),  # strings for numbers
        ("[10.5, 20.5, 30, 40]", (21, 20.5, 60, 40), "box"),
        ("[90, 90, 130, 140]", (180, 90, 200, 100), "box"),  # beyond the edge: clipped
        ("[10, 20, 10, 20]", (20, 20, 20, 20), "box"),  # no area: it takes part
        ("[100, 0, 120, 50]", None, "outside the image"),
        ("[-50, 10, 0, 40]", None, "outside the image"),  # ends where the image begins
        ("[10, -50, 40, 0]", None, "outside the image"),
        ("", None, "empty"),
        ("There is no such sign.", None, "no list"),
        ('{"bbox_2d": [10, 20, 3', None, "truncated"),
        ("[10, 20, 30]", None, "not four values"),
        ("[x1, y1, x2, y2]", None, "not numbers"),
    ],
)
def test_read_response(text, bbox_px, kind):
    assert read_response(text, seen_size=(100, 100), size=(200, 100)) == (bbox_px, kind)


def test_grow():
    boxes, cut_points = grow(records(*TEXTS), (45, 10, 4, 2, 1))
    assert cut_points == pytest.approx((0.01, 0.04, 0.09, 1))
    # The fifth is the number of cut points that the area reaches.
    assert [box.fifth for box in boxes] == [1, 0, 2, 4, 3, 4]
    assert boxes[0].bbox_px == (0, 0, 20, 10)  # x doubles: the image is twice as wide as it was seen
    # 20x10 px at the corner, x10: 63.2x31.6 px, pushed inside -> 63.2 / 200 = 31.6%, 31.6 / 100 = 31.6%
    assert boxes[0].bbox_pct == (0, 0, 31, 31)
    assert boxes[1].bbox_pct[0] == boxes[1].bbox_pct[2] == 5  # no width to grow
    assert boxes[3] == GrownBox("empty", (0, 0, 200, 100), (200, 100), 1.0, 4, (0, 0, 100, 100))


BOXES = st.lists(st.integers(min_value=-20, max_value=130), min_size=4, max_size=4).map(str)


@given(texts=st.lists(st.one_of(BOXES, st.text()), min_size=1, max_size=30))
def test_growth_keeps_boxes_inside_and_never_shrinks_one(texts):
    boxes, cut_points = grow(records(*texts))
    assert list(cut_points) == sorted(cut_points)
    for text, box in zip(texts, boxes, strict=True):
        x1, y1, x2, y2 = box.bbox_pct
        assert 0 <= x1 <= x2 <= 100, text
        assert 0 <= y1 <= y2 <= 100, text
        assert box.fifth == sum(box.area >= cut_point for cut_point in cut_points)
        width, height = box.size
        # Truncation to whole percents takes less than one off either end.
        assert x2 - x1 > (box.bbox_px[2] - box.bbox_px[0]) * 100 / width - 1 - 1e-9, text
        assert y2 - y1 > (box.bbox_px[3] - box.bbox_px[1]) * 100 / height - 1 - 1e-9, text


def test_records_without_a_response_have_no_box():
    boxes, cut_points = grow([{"error": "broken"}, *records("[0, 0, 10, 10]")])
    assert boxes[0] is None
    assert boxes[1].bbox_px == (0, 0, 20, 10)
    assert cut_points == pytest.approx((0.01,) * 4)
    with pytest.raises(UserError, match="none of the 2 rows could be boxed: broken"):
        grow([{"error": "broken"}, {"error": "too"}])
