"""The prompts of rows: which images they show, and their sizes without decoding them."""

import pytest
from datasets import Image, load_from_disk

from cropvlm.data.images import open_image
from cropvlm.errors import UnreadableImage
from cropvlm.prompts import cropper_messages
from cropvlm.runs.prompt_sources import AnswerPrompts, BoxPrompts


def test_the_cropper_sees_the_full_image(tiny_world):
    rows = load_from_disk(str(tiny_world))["test"].cast_column("image", Image(decode=False))
    prompts = BoxPrompts(rows)
    assert len(prompts) == 12
    full = open_image(rows[3]["image"])
    assert prompts[3] == [(cropper_messages(rows[3]["question"]), [full])]
    assert prompts.image_sizes(3) == [full.size]


@pytest.mark.parametrize("source", [BoxPrompts, lambda rows: AnswerPrompts(rows, {"cropvlm": ["[0, 0, 1, 1]"]})])
def test_an_unreadable_image_has_no_size_and_no_prompt(source):
    prompts = source([{"image": {"bytes": b"no image", "path": None}, "question": "what?"}])
    assert prompts.image_sizes(0) == []
    with pytest.raises(UnreadableImage):
        prompts[0]


def test_prompts_show_the_full_image_and_the_crop_of_the_original(tiny_world):
    rows = load_from_disk(str(tiny_world))["test"].cast_column("image", Image(decode=False))
    full = open_image(rows[0]["image"])
    boxes = ["[0, 0, 50, 25]."] + ["no box"] * 11
    prompts = AnswerPrompts(rows, {"base": boxes, "cropvlm": boxes}, "Answer.")
    (base, base_images), (cropvlm, crop_images) = prompts[0]
    text = f"{rows[0]['question'].capitalize()}\nAnswer."
    assert base == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    assert cropvlm[0]["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]
    assert base_images == [full]
    assert crop_images[0] is base_images[0]  # one object: preprocessed and encoded once
    left, top, right, bottom = 0, 0, -(-full.width // 2), -(-full.height // 4)  # every pixel that the box touches
    assert crop_images[1] == full.crop((left, top, right, bottom))
    assert prompts.image_sizes(0) == [full.size, (right, bottom)]
    # No box: the full image again, the same object.
    (_, (base_image,)), (_, crop_images) = prompts[1]
    assert crop_images[0] is crop_images[1] is base_image
    assert prompts.image_sizes(1) == [base_image.size]
