"""From responses to training boxes: read, mapped back to the original, grown; worked out by hand."""

import pytest
from made_sets import TEXTS, records

from cropvlm.errors import UserError
from cropvlm.models.qwen import PixelBudget, qwen_size
from cropvlm.teacher import GrownBox, grow, read_response


@pytest.mark.parametrize("size", [(1023, 681), (7301, 5479), (3, 3000), (29, 27)])
def test_box_comes_back_from_the_size_that_the_teacher_saw(size):
    width, height = size
    seen_width, seen_height = seen = qwen_size(size, *PixelBudget())
    # The right lower quarter, in the teacher's pixels, is the right lower quarter of the original.
    text = f'{{"bbox_2d": [{seen_width / 2}, {seen_height / 2}, {seen_width}, {seen_height}]}}'
    bbox_px, kind = read_response(text, seen, size)
    assert kind == "box"
    assert bbox_px == pytest.approx((width / 2, height / 2, width, height), rel=1e-12)


def test_read_response():
    expected = {
        "[10, 20, 30, 40]": ((20, 20, 60, 40), "box"),  # seen 100x100, in truth 200x100: x doubles
        "[90, 90, 130, 140]": ((180, 90, 200, 100), "box"),  # beyond the edge: clipped
        "[10, 20, 10, 20]": ((20, 20, 20, 20), "box"),  # no area: it takes part
        "[100, 0, 120, 50]": (None, "outside the image"),
        "[-50, 10, 0, 40]": (None, "outside the image"),  # ends where the image begins
        "": (None, "empty"),
    }
    assert {text: read_response(text, seen_size=(100, 100), size=(200, 100)) for text in expected} == expected


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


def test_records_without_a_response_have_no_box():
    boxes, cut_points = grow([{"error": "broken"}, *records("[0, 0, 10, 10]")])
    assert boxes[0] is None
    assert boxes[1].bbox_px == (0, 0, 20, 10)
    assert cut_points == pytest.approx((0.01,) * 4)
    with pytest.raises(UserError, match="none of the 2 rows could be boxed: broken"):
        grow([{"error": "broken"}, {"error": "too"}])
