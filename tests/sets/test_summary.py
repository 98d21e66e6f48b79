"""The teacher's report: counts worked out by hand, and the picture."""

import pytest
from made_sets import TEXTS, records

from cropvlm.sets.card import draw_report, summarise
from cropvlm.teacher import grow


def test_summarise():
    boxes, cut_points = grow(records(*TEXTS))
    report = summarise(boxes, ["a", "a", "b", "b", "b", "b"], cut_points, (45, 10, 4, 2, 1))
    assert report["rows"] == 6
    assert report["responses"] == {"box": 4, "empty": 1, "truncated": 1}
    assert report["whole_image_fallbacks"] == 2
    assert report["boxes_without_area"] == 1
    assert report["boxes_without_area_after_growth"] == 1
    assert report["cut_points"] == list(cut_points)
    # Without the fallbacks and the box without area .01 .04 .09 are left: indices 0, 1, 1, 2
    assert report["cut_points_of_real_boxes"] == pytest.approx([0.01, 0.04, 0.04, 0.09])
    assert report["rows_by_fifth"] == [1, 1, 1, 1, 2]
    assert report["sources"]["a"] == {"rows": 2, "responses": {"box": 2}, "rows_by_fifth": [1, 1, 0, 0, 0]}
    assert report["sources"]["b"]["rows_by_fifth"] == [0, 0, 1, 1, 2]
    assert report["mean_area_before"] == pytest.approx((0.01 + 0.04 + 0.09 + 1 + 1) / 6)


@pytest.mark.parametrize(("rows", "height"), [(6, 240), (7, 480), (100, 960)])
def test_picture_shows_at_most_24_boxes(rows, height):
    from PIL import Image

    image = Image.new("RGB", (200, 100), "white")
    boxes, _ = grow(records(*["[10, 10, 60, 60]"] * rows))
    picture = draw_report(boxes, [{"image": image, "question": "What?"}] * rows)
    assert picture.size == (1440, height)  # 240 for every six tiles
    # 232 px for 200: scale 1.16; the teacher's box is 20..120 x 10..60, so its top side runs at y = 4 + 11.6
    assert picture.getpixel((60, 4 + 12)) != (255, 255, 255)
