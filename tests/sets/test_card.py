"""The teacher's report and the card: counts by hand, the picture, what is not told on the Hub, the YAML head."""

import pytest
from huggingface_hub import DatasetCard
from made_sets import TEXTS, records
from PIL import Image

from cropvlm.sets.card import draw_report, summarise, write_card
from cropvlm.teacher import grow

GROWTH = (45, 10, 4, 2, 1)
SETTINGS = {
    "model_path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "min_pixels": None,
    "max_pixels": 1003520,
    "max_new_tokens": 128,
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Outline {question}"}]}],
}


def test_summarise():
    boxes, cut_points = grow(records(*TEXTS))
    report = summarise(boxes, ["a", "a", "b", "b", "b", "b"], cut_points, GROWTH)
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


@pytest.mark.parametrize(("rows", "height"), [(7, 480), (100, 960)])
def test_picture_shows_at_most_24_boxes(rows, height):
    image = Image.new("RGB", (200, 100), "white")
    boxes, _ = grow(records(*["[10, 10, 60, 60]"] * rows))
    picture = draw_report(boxes, [{"image": image, "question": "What?"}] * rows)
    assert picture.size == (1440, height)  # 240 for every six tiles
    # 232 px for 200: scale 1.16; the teacher's box is 20..120 x 10..60, so its top side runs at y = 4 + 11.6
    assert picture.getpixel((60, 4 + 12)) != (255, 255, 255)


def test_card():
    boxes, cut_points = grow(records(*TEXTS))
    report = summarise(boxes, ["a"] * 6, cut_points, GROWTH)
    sources = [{"name": "a", "path": "someone/a", "licence": "cc-by-4.0", "sft": 6, "grpo": 7}]
    card = write_card(report, SETTINGS, sources)
    gone = write_card(report, SETTINGS | {"model_path": "/gone/with/its/owner/teacher"}, sources)
    assert "Teacher: teacher (a local folder), greedy" in gone  # the card goes to the Hub
    assert "| a | someone/a | cc-by-4.0 | 6 | 7 |" in card
    # What is not a licence's name would break the YAML.
    licences = ["cc-by-4.0", "see the source", "mit, cc-by-4.0", "- [", "mit: {"]
    mixed = write_card(report, SETTINGS, [sources[0] | {"licence": licence} for licence in licences])
    assert DatasetCard(mixed).data.license == ["cc-by-4.0", "other", "mit"]
    assert "images of its own minimum to 1003520 pixels" in card
    assert "Cut points of relative area: 1.000%, 4.000%, 9.000%, 100.000%" in card
    assert "1 rows x45, 1 rows x10, 1 rows x4, 1 rows x2, 2 rows x1" in card
