"""The teacher's report: counts worked out by hand, the picture, the card."""

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from cropvlm.teacher.asking import GrownBox, grow
from cropvlm.teacher.report import draw_report, summarise, write_card

SETTINGS = {
    "model_path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "min_pixels": None,
    "max_pixels": 1003520,
    "max_new_tokens": 128,
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Outline {question}"}]}],
}


def records(*texts: str) -> list[dict]:
    """Records of images of 200x100, seen at 100x100."""
    return [{"size": [200, 100], "seen_size": [100, 100], "teacher_response": text} for text in texts]


# Relative areas 0.01, 0 (no area), 0.04, 1 (empty), 0.09, 1 (truncated); sorted 0 .01 .04 .09 1 1; n = 6, so the cut
# points are those at 6//5 = 1, 12//5 = 2, 18//5 = 3, 24//5 = 4: .01 .04 .09 1
TEXTS = ("[0, 0, 10, 10]", "[5, 5, 5, 9]", "[0, 0, 20, 20]", "", "[50, 50, 80, 80]", "[1, 2")


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


def test_only_fallbacks_have_no_cut_points_of_real_boxes():
    boxes, cut_points = grow(records("", ""))
    assert summarise(boxes, ["a", "a"], cut_points, (45, 10, 4, 2, 1))["cut_points_of_real_boxes"] is None


@pytest.mark.parametrize(("rows", "height"), [(1, 480), (6, 480), (7, 720), (24, 1200), (100, 1200)])
def test_picture_shows_at_most_24_boxes(rows, height):
    from PIL import Image

    image = Image.new("RGB", (200, 100), "white")
    boxes, _ = grow(records(*["[10, 10, 60, 60]"] * rows))
    picture = draw_report(boxes, [{"image": image, "question": "What?"}] * rows)
    assert picture.size == (1440, height)  # 240 of the histogram, 240 for every six tiles
    # 232 px for 200: scale 1.16; the teacher's box is 20..120 x 10..60, so its top side runs at y = 4 + 11.6
    assert picture.getpixel((60, 240 + 4 + 12)) != (255, 255, 255)


def test_card():
    boxes, cut_points = grow(records(*TEXTS))
    report = summarise(boxes, ["a"] * 6, cut_points, (45, 10, 4, 2, 1))
    sources = [{"name": "a", "path": "someone/a", "licence": "cc-by-4.0", "sft": 6, "grpo": 7}]
    card = write_card(report, SETTINGS, sources)
    gone = write_card(report, SETTINGS | {"model_path": "/gone/with/its/owner/teacher"}, sources)
    assert "Teacher: teacher (a local folder), greedy" in gone  # the card goes to the hub
    assert card.startswith("---\n")
    assert "| a | someone/a | cc-by-4.0 | 6 | 7 |" in card
    licences = ["cc-by-4.0", "see the source", "mit, cc-by-4.0"]
    mixed = write_card(report, SETTINGS, [sources[0] | {"licence": licence} for licence in licences])
    assert DatasetCard(mixed).data.license == ["cc-by-4.0", "other", "mit"]
    assert "Teacher: Qwen/Qwen2.5-VL-7B-Instruct, greedy, at most 128 new tokens" in card
    assert "images of its own minimum to 1003520 pixels" in card
    assert "Cut points of relative area: 1.000%, 4.000%, 9.000%, 100.000%" in card
    assert "1 rows x45, 1 rows x10, 1 rows x4, 1 rows x2, 2 rows x1" in card
    assert "4 box, 1 empty, 1 truncated" in card
