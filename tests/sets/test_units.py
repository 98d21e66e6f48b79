"""Teachers whose boxes are not in pixels are known by all of their responses."""

import pytest

from cropvlm.errors import UserError
from cropvlm.sets.responses import in_units
from cropvlm.teacher import grow


def seen_at(size: tuple[int, int], *boxes: list) -> list[dict]:
    return [{"size": list(size), "seen_size": list(size), "teacher_response": str(box)} for box in boxes]


@pytest.mark.parametrize(
    ("responses", "seen"),
    [
        # All within 0..1000 of 2016x1512: by chance (1000/2016 x 1000/1512)^6 = 0.1%.
        (seen_at((2016, 1512), *[[800, 800, 900, 900]] * 6), "no box of 6 leaves 0 to 1000 in larger images"),
        (seen_at((644, 476), *[[800, 100, 900, 200]] * 3, *[[1, 1, 9, 9]] * 5), "3 boxes of 8 lie outside"),
    ],
)
def test_boxes_that_cannot_be_in_pixels_are_refused_or_read_as_relative(responses, seen):
    with pytest.raises(UserError, match=f"{seen}.*--teacher_box_format relative"):
        in_units(responses)
    boxes, _ = grow(in_units(responses, "relative"), (1, 1, 1, 1, 1))
    assert boxes[0].bbox_px[0] == pytest.approx(0.8 * boxes[0].size[0])  # 800 of 1000


@pytest.mark.parametrize(
    "responses",
    [
        seen_at((2016, 1512), *[[800, 800, 900, 900]] * 5, [1500, 10, 1600, 90]),
        seen_at((1036, 700), *[[100, 100, 300, 300]] * 20),  # 1000/1036 to the 20th is 49%
        seen_at((644, 476), *[[800, 100, 900, 200]] * 3, *[[1, 1, 9, 9]] * 6),
        [{"error": "broken"}, *seen_at((28, 28), "no box")],
    ],
)
def test_boxes_that_can_be_in_pixels_are(responses):
    assert in_units(responses) == responses
