"""Box texts and geometry. Worked values have their arithmetic beside them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropvlm.boxes import (
    area_cut_points,
    area_fifth,
    bbox_area_pct,
    bbox_iou,
    expand_bbox,
    parse_bbox,
    parse_teacher_bbox,
    pct_to_px,
    px_to_pct,
    rescale_bbox,
    unreadable_kind,
    validity,
)

VALID = {
    "as trained": ("[10, 20, 30, 40].", (10, 20, 30, 40)),
    "many spaces": ("\n[ 10 ,20 , 30,\t40 ] . \n", (10, 20, 30, 40)),
    "floats stay floats": ("[17.5, 11, 49.0, 80].", (17.5, 11, 49.0, 80)),
}
INVALID = {
    "empty": "",
    "not needed": "Not needed.",
    "three numbers": "[73, 62, 95].",
    "beyond 100": "[10, 20, 101, 40].",
    "negative": "[-1, 20, 30, 40].",
    "x reversed": "[30, 20, 10, 40].",
    "other digits than 0-9": "[١, 20, 30, 40].",
    "10,000 digits": f"[0, 0, {'9' * 10_000}, 40].",
}


@pytest.mark.parametrize(("text", "bbox_pct"), VALID.values(), ids=VALID.keys())
def test_parse_bbox_reads_valid_boxes(text, bbox_pct):
    parsed = parse_bbox(text)
    assert parsed == bbox_pct
    assert [type(value) for value in parsed] == [type(value) for value in bbox_pct]
    assert validity(text) == 1.0


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_parse_bbox_refuses_all_else(text):
    assert parse_bbox(text) is None
    assert validity(text) == (0.25 if text == "Not needed." else 0.0)


TEACHER = {
    "list of objects: the first": ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]', (10, 20, 30, 40)),
    "floats": ("[10.5, 20., 30, 40]", (10.5, 20.0, 30, 40)),
    "strings": ('{"bbox_2d": ["10", "20", "30", "40"]}', (10, 20, 30, 40)),
    "reversed corners": ("[30, 40, 10, 20]", (10, 20, 30, 40)),
    "a list before the field": ('As for [1]: {"bbox_2d": [10, 20, 30, 40]}', (10, 20, 30, 40)),
    "the prompt's own words before": ("'bbox_2d': [x1, y1, x2, y2] is \"bbox_2d\": [10, 20, 30, 40]", (10, 20, 30, 40)),
    "comma at the end": ('{"bbox_2d": [10, 20, 30, 40,]}', (10, 20, 30, 40)),
    "field without quotes": ("bbox_2d = [-1, 20, 30, 40]", (-1, 20, 30, 40)),
    "a box in a thought": ('<think>Not [0, 0, 9, 9].</think>{"bbox_2d": [10, 20, 30, 40]}', (10, 20, 30, 40)),
    "a thought opened by the template": ("[0, 0, 9, 9]? No.\n</think>\n[10, 20, 30, 40]", (10, 20, 30, 40)),
    "a box before the fence": ("Near [0, 0, 9, 9].\n```json\n[10, 20, 30, 40]\n```", (10, 20, 30, 40)),
    "a fence that never closes": ('```json\n[{"bbox_2d": [10, 20, 30, 40], "lab', (10, 20, 30, 40)),
}
UNREADABLE = {
    "empty": ("", "empty"),
    "refusal": ("There is no such region.", "no list"),
    "truncated": ('```json\n[{"bbox_2d": [10, 20, 3', "truncated"),
    "three numbers": ("[10, 20, 30]", "not four values"),
    "the prompt's own words": ("[x1, y1, x2, y2]", "not numbers"),
    "10,000 digits": (f"[1, 2, {'9' * 10_000}, 4]", "not numbers"),
    "a thought that never ends": ("<think>Perhaps [10, 20, 30, 40]", "truncated"),
    "the field's list is not four numbers": ('{"size": [1, 2, 3, 4], "bbox_2d": [10, 20]}', "not four values"),
}


@pytest.mark.parametrize(("text", "bbox_px"), TEACHER.values(), ids=TEACHER.keys())
def test_parse_teacher_bbox_reads_every_shape(text, bbox_px):
    assert parse_teacher_bbox(text) == bbox_px
    assert unreadable_kind(text) is None


@pytest.mark.parametrize(("text", "kind"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_teacher_responses_have_a_kind(text, kind):
    assert parse_teacher_bbox(text) is None
    assert unreadable_kind(text) == kind


@given(st.text() | st.text(alphabet='[]0123456789.,- "'))
def test_any_text_is_a_sorted_box_or_none_of_a_kind(text):
    bbox_pct, bbox_px = parse_bbox(text), parse_teacher_bbox(text)
    assert bbox_pct is None or (0 <= bbox_pct[0] < bbox_pct[2] <= 100 and 0 <= bbox_pct[1] < bbox_pct[3] <= 100)
    if bbox_px is None:
        assert unreadable_kind(text) in {"empty", "no list", "truncated", "not four values", "not numbers"}
    else:
        assert bbox_px[0] <= bbox_px[2]
        assert bbox_px[1] <= bbox_px[3]


@pytest.mark.parametrize(
    ("bbox_pct", "size", "bbox_px"),
    [
        pytest.param((10, 20, 30, 40), (200, 50), (20, 10, 60, 20), id="10% of 200, 20% of 50"),
        pytest.param((10, 20, 30, 40), (33, 33), (3, 6, 10, 14), id="3.3, 6.6, 9.9, 13.2 outwards"),
        pytest.param((0, 0, 100, 100), (7, 3), (0, 0, 7, 3), id="whole image"),
        pytest.param((29, 0, 58, 100), (100, 1), (29, 0, 58, 1), id="29% of 100 px is pixel 29"),
        pytest.param((0, 0, 5e-324, 5e-324), (1, 1), (0, 0, 1, 1), id="a width that rounds to nothing"),
    ],
)
def test_pct_to_px(bbox_pct, size, bbox_px):
    assert pct_to_px(bbox_pct, *size) == bbox_px
    with pytest.raises(ValueError, match="0x5 px"):
        pct_to_px(bbox_pct, 0, 5)


def test_percent_by_hand():
    assert px_to_pct((29, 0, 57, 200), 100, 200) == (29, 0, 57, 100)  # 29 / 100 * 100 is 28.999999999999996
    assert bbox_area_pct((10, 20, 30, 70)) == 10  # 20 % x 50 % = 10 %


@pytest.mark.parametrize(
    ("bbox_px", "from_size", "to_size", "mapped"),
    [
        # Qwen2.5-VL resizes 1000x333 to multiples of 28: 1008x336. x * 1000/1008, y * 333/336.
        pytest.param((504, 168, 1008, 336), (1008, 336), (1000, 333), (500, 166.5, 1000, 333), id="multiples of 28"),
        pytest.param((-10, 0, 50, 120), (100, 100), (200, 300), (0, 0, 100, 300), id="clipped at both ends"),
        pytest.param((150, 150, 160, 160), (100, 100), (100, 100), (100, 100, 100, 100), id="wholly outside"),
        pytest.param((10, 20, 30, 40), (100, 100), (100, 100), (10, 20, 30, 40), id="same size"),
    ],
)
def test_rescale_bbox(bbox_px, from_size, to_size, mapped):
    assert rescale_bbox(bbox_px, from_size, to_size) == mapped


@pytest.mark.parametrize(
    ("bbox_px", "multiplier", "bbox_pct"),
    [
        # Image 200x100 throughout.
        pytest.param((20, 30, 60, 70), 1, (10, 30, 30, 70), id="x1: 20/200, 30/100, 60/200, 70/100"),
        # Centre (100, 50), 20x10 -> 40x20: 80..120 of 200, 40..60 of 100.
        pytest.param((90, 45, 110, 55), 4, (40, 40, 60, 60), id="x4 around the centre"),
        # Centre (10, 50), 20x10 -> 40x20: -10..30 is pushed to 0..40; 40..60.
        pytest.param((0, 45, 20, 55), 4, (0, 40, 20, 60), id="pushed from the left"),
        # Centre (190, 95): 170..210 -> 160..200; 85..105 -> 80..100.
        pytest.param((180, 90, 200, 100), 4, (80, 80, 100, 100), id="pushed from the right and bottom"),
        # 120x10 -> 240x20: wider than the image, so all of its width.
        pytest.param((70, 45, 190, 55), 4, (0, 40, 100, 60), id="clamped"),
        # 5/200 = 2.5 %, 7.5/200 = 3.75 %: 2 and 3.
        pytest.param((5, 10, 7.5, 20), 1, (2, 10, 3, 20), id="truncated, not rounded"),
        pytest.param((100, 50, 100, 50), 45, (50, 50, 50, 50), id="no area stays no area"),
        pytest.param((0, 0, 200, 100), 1, (0, 0, 100, 100), id="whole image"),
    ],
)
def test_expand_bbox(bbox_px, multiplier, bbox_pct):
    assert expand_bbox(bbox_px, 200, 100, multiplier) == bbox_pct


@pytest.mark.parametrize(
    ("bbox_a", "bbox_b", "iou"),
    [
        pytest.param((0, 0, 10, 10), (0, 0, 10, 10), 1, id="same"),
        pytest.param((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3, id="50 shared of 150"),
        pytest.param((0, 0, 10, 10), (20, 20, 30, 30), 0, id="apart on both axes: two negatives do not make an area"),
        pytest.param((0, 0, 10, 10), (10, 0, 20, 10), 0, id="touching"),
        pytest.param((5, 5, 5, 5), (5, 5, 5, 5), 0, id="no area"),
    ],
)
def test_bbox_iou(bbox_a, bbox_b, iou):
    assert bbox_iou(bbox_a, bbox_b) == pytest.approx(iou)


def test_area_cut_points_are_the_fifths():
    # n = 12: indices 12//5 = 2, 24//5 = 4, 36//5 = 7, 48//5 = 9 of the sorted list 0..11.
    assert area_cut_points([11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]) == (2, 4, 7, 9)
    assert area_cut_points(range(10)) == (2, 4, 6, 8)  # 10//5 = 2, 20//5 = 4, ...
    assert area_cut_points([3.5]) == (3.5, 3.5, 3.5, 3.5)
    with pytest.raises(ValueError, match="at least one box"):
        area_cut_points([])


def test_a_fifth_begins_at_its_cut_point():
    assert [area_fifth(area, (2, 4, 7, 9)) for area in range(12)] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert [area_fifth(area, (2, 2, 2, 9)) for area in range(4)] == [0, 0, 3, 3]
