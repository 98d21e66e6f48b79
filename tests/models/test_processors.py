"""The size at which each family sees an image, and whether it sees all of it."""

from types import SimpleNamespace

import pytest
import torch
from pictures import noise
from PIL import Image

from cropvlm.crops import full_and_crop
from cropvlm.modeling import load_processor
from cropvlm.models.processors import image_fit_of, seen_size
from cropvlm.models.readers import image_reader
from cropvlm.runs.text_models import answerer
from generate_final_answers import parse_args


def test_seen_size(tiny_smolvlm, tiny_qwen):
    assert seen_size(load_processor(str(tiny_smolvlm)), (640, 320)) == (64, 32)  # a longer side of 64 px
    # Sides of multiples of 28, at most 140 x 140 px in all
    assert seen_size(load_processor(str(tiny_qwen)), (1400, 700)) == (196, 84)
    # LLaVA-1.5 as published, before it cuts the middle out; a square; unknown
    sizes = [{"shortest_edge": 336}, {"height": 384, "width": 384}, {}]
    processors = [SimpleNamespace(image_processor=SimpleNamespace(size=size)) for size in sizes]
    assert [seen_size(processor, (1000, 500)) for processor in processors] == [(672, 336), (384, 384), None]


def pixels_of(processor, image):
    return image_reader(processor, torch.device("cpu")).read(image).tensors["pixel_values"]


def squared(image, mean):
    """As LLaVA's authors do: in the middle of a square of the mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def test_every_pixel_of_image_and_crop_is_seen_by_llava(published_llava):
    """Cut, a 1024x768 image loses 128 columns on either side, a 400x39 crop all but its middle tenth."""
    padding, cutting = (load_processor(published_llava, image_fit=fit) for fit in ("pad", "crop"))
    assert [image_fit_of(processor) for processor in (padding, cutting)] == ["pad", "crop"]
    assert seen_size(padding, (1024, 768)) == (64, 48)
    image, crop = full_and_crop(noise(1024, 768), "[30, 50, 69, 55].")
    assert crop.size == (400, 39)
    for shown, lost in ((image, 1024 - 768), (crop, crop.width - crop.height)):
        before = pixels_of(padding, shown)
        assert before.shape[-2:] == (64, 64)
        columns = [(x, 0, x + 32, shown.height) for x in range(0, shown.width, 32)]
        for stripe in columns + [(0, y, shown.width, y + 16) for y in range(0, shown.height, 16)]:
            changed = shown.copy()
            changed.paste((255, 0, 0), stripe)
            assert not torch.equal(pixels_of(padding, changed), before)
        changed = shown.copy()
        changed.paste((255, 0, 0), (0, 0, lost // 2 - 40, shown.height))  # the filter reaches 2 x 12 px beyond the cut
        assert torch.equal(pixels_of(cutting, changed), pixels_of(cutting, shown))
        expected = pixels_of(cutting, squared(shown, cutting.image_processor.image_mean))
        assert torch.equal(pixels_of(padding, shown), expected)


@pytest.mark.parametrize(("flags", "fit"), [([], "pad"), (["--image_fit", "crop"], "crop")])
def test_the_meta_file_says_how_images_are_fitted(published_llava, tiny_smolvlm, monkeypatch, flags, fit):
    for path, expected in ((published_llava, fit), (str(tiny_smolvlm), None)):
        monkeypatch.setattr("sys.argv", ["script", "--modes", "base", "--vqa_model_path", path, "--gpu", "-1", *flags])
        assert answerer(parse_args()).settings.get("image_fit") == expected


def test_other_processors_are_left_as_they_are(tiny_llava, tiny_smolvlm, tiny_qwen):
    for path in (tiny_llava, tiny_smolvlm, tiny_qwen):
        processors = [load_processor(str(path), image_fit=fit) for fit in ("pad", "crop")]
        assert [image_fit_of(processor) for processor in processors] == [None, None]
        assert processors[0].image_processor.to_dict() == processors[1].image_processor.to_dict()
