"""Every box text whatsoever gives a crop inside the image."""

from hypothesis import given
from hypothesis import strategies as st
from pictures import GREEN, RED, WHITE, checkered, pixels
from PIL import Image

from cropvlm.boxes import format_bbox
from cropvlm.crops import crop_bbox, crop_or_corner, crop_or_full_image, full_and_crop


def test_crop_is_cut_at_full_resolution():
    image = Image.new("RGB", (200, 100))
    image.paste(RED, (20, 30, 60, 70))
    crop = crop_bbox(image, (10, 30, 30, 70))  # 20..60 of 200, 30..70 of 100
    assert crop.size == (40, 40)
    assert set(pixels(crop)) == {RED}
    crop, valid = crop_or_full_image(checkered(), " [34, 0, 66, 50].")  # 1.02..1.98 of 3 pixels, 0..1 of 2
    assert valid
    assert pixels(crop) == pixels(crop_or_corner(checkered(), "[34, 0, 66, 50].")) == [GREEN]


def test_texts_without_a_valid_box():
    image = checkered()
    for text in ("", "Not needed.", "[10, 20, 10, 40].", "[0, 0, 200, 100].", "x" * 10_000):
        assert crop_or_full_image(image, text) == (image, False)
        assert pixels(crop_or_corner(image, text)) == [RED, GREEN, WHITE, (10, 20, 30)]  # the 2x2 at the top left


def test_the_answerer_sees_the_full_image_once_where_no_crop_is_needed():
    image = checkered()
    assert full_and_crop(image, " Not needed.") == [image]
    assert full_and_crop(image, "Not needed. [0, 0, 50, 50].") == [image, image]  # an invalid box
    assert full_and_crop(image, "[0, 0, 100, 100].") == [image, image]


box_texts = st.text() | st.tuples(*[st.integers(-20, 120) | st.floats(-20, 120)] * 4).map(format_bbox)


@given(box_texts, st.integers(1, 300), st.integers(1, 300))
def test_every_text_gives_a_crop_with_a_pixel_inside_the_image(text, width, height):
    image = Image.new("RGB", (width, height), WHITE)
    for crop in (crop_or_full_image(image, text)[0], crop_or_corner(image, text)):
        assert 1 <= crop.width <= width
        assert 1 <= crop.height <= height
        assert crop.getextrema() == ((255, 255),) * 3  # beyond the image Pillow would pad with black
