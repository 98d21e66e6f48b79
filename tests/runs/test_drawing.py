"""Tiles and contact sheets: sizes and pixels worked out by hand."""

import numpy as np
from PIL import Image

from cropvlm.runs.drawing import LINE, draw_boxes, tile

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def test_a_box_is_drawn_on_a_copy_inside_its_edges():
    image = Image.new("RGB", (100, 50))
    drawn = draw_boxes(image, [((10, 20, 50, 100), "red")], width=1)  # 10..50 x 10..50 px, the last exclusive
    red = np.argwhere((np.asarray(drawn) == RED).all(-1))
    assert red.min(0).tolist() == [10, 10]
    assert red.max(0).tolist() == [49, 49]
    assert len(red) == 4 * 39  # a frame of 40 x 40
    assert image.getcolors() == [(5000, BLACK)]


def test_tile_scales_the_box_with_the_image_and_writes_below():
    picture = tile(
        Image.new("RGB", (400, 200)),
        (100, 100 + LINE),
        boxes=[((50, 50, 100, 100), "red")],
        frame="white",
        lines=[("a question", "red")],
    )
    assert picture.size == (100, 100 + LINE)
    assert picture.getpixel((50, 25)) == RED  # the image became 100 x 50
    assert picture.getpixel((0, 0)) == picture.getpixel((99, 49)) == WHITE  # the frame, over the box
    assert picture.getpixel((20, 20)) == BLACK
    assert (np.asarray(picture)[100:] != 255).any()
    assert (np.asarray(picture)[51:100] == 255).all()


def test_text_of_any_script_and_length_is_drawn():
    picture = tile(
        Image.new("RGB", (1000, 1), WHITE), (60, 60), lines=[("東京 \U0001f600 \n\x00 \ud800" * 100, "black")]
    )
    assert picture.size == (60, 60)
    assert (np.asarray(picture)[60 - LINE :] != 255).any()
