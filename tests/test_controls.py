"""The images that the controls show in the crop's place."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from cropvlm.crops import crop_bbox
from cropvlm.runs.controls import CONTROLS, box_elsewhere, control_boxes, other_rows, shown_images


def make_rows(images: str, questions: list[str], ids: list | None = None) -> Dataset:
    """Rows whose image files are one letter each."""
    files = [{"bytes": image.encode(), "path": None} for image in images]
    return Dataset.from_dict({"question_id": ids or range(len(files)), "question": questions, "image": files})


@pytest.mark.parametrize(
    ("control", "text", "shown"),
    [
        ("full_twice", "no box", "[0, 0, 100, 100]."),
        ("centre", "no box", "[25, 25, 75, 75]."),
        ("crop_alone", "[10, 20, 30, 40].", "[10, 20, 30, 40]."),
        ("wider", "[40, 40, 60, 50].", "[30, 35, 70, 55]."),  # twice as wide and as high about its centre
        ("wider", "no box", "no box"),
        ("elsewhere", "no box", "no box"),  # the full image, as for the crop itself
        ("elsewhere", "[0, 0, 100, 100].", "[0, 0, 100, 100]."),
        *((control, "Not needed.", "Not needed.") for control in CONTROLS if control not in ("shuffled", "partner")),
    ],
)
def test_boxes_by_hand(control, text, shown):
    assert control_boxes(control, [text], make_rows("a", ["what?"])) == [shown]


@pytest.mark.parametrize("bbox_pct", [(0, 0, 20, 10), (40, 40, 60, 60), (30.5, 10, 50.25, 99), (0, 0, 49, 100)])
def test_elsewhere_is_as_large_and_does_not_touch(bbox_pct):
    x1, y1, x2, y2 = bbox_pct
    drawn = {box_elsewhere(bbox_pct, question_id) for question_id in range(200)}
    assert len(drawn) > 1
    for left, top, right, bottom in drawn:
        assert (right - left, bottom - top) == pytest.approx((x2 - x1, y2 - y1))
        assert min(left, top) >= 0
        assert max(right, bottom) <= 100
        # At least 1% away, so that no pixel is in both when they are cut outwards.
        assert right + 1 <= x1 or left >= x2 + 1 or bottom + 1 <= y1 or top >= y2 + 1


def test_elsewhere_overlaps_least_where_nothing_fits():
    # 80 x 60 in the middle: shifted to a corner they share 70 x 40, elsewhere more.
    corners = {(0, 0, 80, 60), (20, 0, 100, 60), (0, 40, 80, 100), (20, 40, 100, 100)}
    assert {box_elsewhere((10, 20, 90, 80), question_id) for question_id in range(50)} == corners


def test_boxes_are_the_same_on_every_machine():
    boxes = {7: (26, 4, 46, 24), 8: (64, 72, 84, 92), "7": (80, 40, 100, 60)}  # 7 and "7" are two ids
    assert {question_id: box_elsewhere((40, 40, 60, 60), question_id) for question_id in boxes} == boxes
    assert control_boxes("elsewhere", ["[40, 40, 60, 60]."], make_rows("a", ["?"], ["7"])) == ["[80, 40, 100, 60]."]


def test_other_rows_by_hand():
    rows = make_rows("aabccc", ["what?", "who?", "what?", "what?", "what?", "where?"])
    # The next row with another image, the first after the last.
    assert other_rows("shuffled", rows) == [2, 2, 3, 0, 0, 0]
    # The next row with this image that asks something else: row 3 has the question of row 4.
    assert other_rows("partner", rows) == [1, 0, None, 5, 5, 3]
    boxes = [f"[{i}, 0, 50, 50]." for i in range(6)]
    assert control_boxes("partner", boxes, rows)[1:4] == [boxes[0], None, boxes[5]]
    assert other_rows("shuffled", make_rows("aa", ["x", "y"])) == [None, None]
    # A row that needs no crop gets none from another row either.
    assert control_boxes("shuffled", ["Not needed.", boxes[1]], make_rows("ab", ["x", "y"])) == ["Not needed."] * 2


@pytest.fixture
def stripes() -> Image.Image:
    """200 x 100 px: columns of one pixel, black and white by turns; the right half is 40 levels brighter at most."""
    levels = np.tile(np.arange(200) % 2 * 200, (100, 1))
    levels[:, 100:] += 40
    return Image.fromarray(np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2))


def contrast(image: Image.Image) -> int:
    levels = np.asarray(image).astype(int)
    return int(levels.max() - levels.min())


def test_without_detail_the_place_stays_and_the_stripes_go(stripes):
    full, blurred = shown_images("no_detail", stripes, "[60, 0, 90, 100].", lambda size: (50, 25))
    crop = crop_bbox(stripes, (60, 0, 90, 100))
    assert full is stripes
    assert blurred.size == crop.size == (60, 100)  # as many tokens as the crop
    assert contrast(crop) == 200
    assert contrast(blurred) < 20
    assert np.asarray(blurred).mean() == pytest.approx(140, abs=5)  # the mean of 40 and 240: the right half's
    _, whole = shown_images("no_detail", stripes, "[60, 0, 90, 100].", lambda size: (400, 200))
    assert np.array_equal(np.asarray(whole), np.asarray(crop))  # what is seen in full loses nothing


def test_the_images_of_the_others(stripes):
    full, crop = shown_images("elsewhere", stripes, "[0, 0, 50, 50].", None)
    assert (full is stripes, crop.size) == (True, (100, 50))
    (alone,) = shown_images("crop_alone", stripes, "[0, 0, 50, 50].", None)
    assert alone == crop
    for control in ("no_detail", "elsewhere"):
        assert shown_images(control, stripes, "no box", None) == [stripes, stripes]
    assert shown_images("crop_alone", stripes, "no box", None) == [stripes]
    for control in CONTROLS:
        assert shown_images(control, stripes, "Not needed.", None) == [stripes]
