"""The miniature's training data match what the real processors show the models."""

import math
import random
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cropvlm import prompts
from miniature.pretraining import conversations, pretrain
from miniature.pretraining.families import FAMILIES
from miniature.pretraining.lessons import CHARACTERS, COLOR_IDS, IGNORE, Example, patch_labels, take_picture
from miniature.world import Placard, draw_scene


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    family = FAMILIES[request.param]()
    family.name = request.param
    return family


def test_a_lesson_is_what_the_processor_makes_of_it(family):
    """Tokens and image features: once as pretraining computes them, once through processor and model."""
    canvas, placards = draw_scene(random.Random(5))
    crops = [(0, 0, *canvas.size), (100, 80, 290, 200)] if family.sees_crops else [(0, 0, *canvas.size)]
    pictures = [take_picture(family.name, canvas, placards, crop, 0.0, 0, False) for crop in crops]
    scene_like = Example(pictures, prompts.answerer_messages("What is it?", len(crops)), "Mall.", "red", (0, 0, 1, 1))
    with torch.no_grad():
        for picture in pictures:
            picture.features = family.encode(torch.from_numpy(picture.tile[None]))[0]
    ids, answer = conversations.tokenize(family, scene_like)
    tokenizer = family.processor.tokenizer
    assert tokenizer.decode(answer) == f"{family.answer_prefix}Mall.{tokenizer.eos_token}"

    text = family.processor.apply_chat_template(scene_like.messages, add_generation_prompt=True, tokenize=False)
    inputs = family.processor(text=[text], images=[[canvas.crop(crop) for crop in crops]], return_tensors="pt")
    assert inputs["input_ids"].tolist() == [ids]

    batch = conversations.Conversation(family, [scene_like])
    with torch.no_grad():
        expected = family.model(**inputs).logits[:, -1]  # (1, V), what follows the prompt
        logits, targets = batch.logits(family)
    assert targets.tolist() == [answer]
    # Two of the processors resize with torchvision, the lessons with Pillow: here and there by a grey level apart.
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-2, rtol=0)


def test_labels_of_a_picture_by_hand():
    """A 100 x 100 canvas in 4 x 4 cells of 25: a red placard over the two middle cells of the first row."""
    placard = Placard("red", "sign", "47", (25, 0, 75, 25))
    labels = {name: values.reshape(4, 4) for name, values in patch_labels([placard], (0, 0, 100, 100), 4, 4).items()}
    red = COLOR_IDS["red"]
    assert labels["color"].tolist() == [[0, red, red, 0], [0] * 4, [0] * 4, [0] * 4]
    assert labels["tens"][0].tolist() == [IGNORE, 4, 4, IGNORE]
    assert labels["ones"][0].tolist() == [IGNORE, 7, 7, IGNORE]
    # 25% of the width is bin 5 of 20, 75% bin 15
    assert labels["x1"][0].tolist() == [IGNORE, 5, 5, IGNORE]
    assert labels["x2"][0].tolist() == [IGNORE, 15, 15, IGNORE]
    # x1 is 0 cells right of the second cell's corner and 1 left of the third's: (0 + 2) * 6 and (-1 + 2) * 6
    assert labels["from_x1"][0].tolist() == [IGNORE, 12, 6, IGNORE]
    # Both digits are wide enough to be visible: the 4 in the second cell, the 7 in the third.
    assert labels["character"][0].tolist() == [0, CHARACTERS.index("4") + 1, CHARACTERS.index("7") + 1, 0]
    # Cut at half of the placard, only its color is left to learn.
    cut = patch_labels([placard], (0, 0, 50, 50), 4, 4)
    assert set(cut["word"]) == {IGNORE}
    assert red in cut["color"]


def test_tokens_or_answers_weigh_alike_in_the_loss():
    logits = torch.zeros(2, 3, 2)
    logits[1, :, 1] = 100  # sure of its three tokens, where the other's one token costs log 2
    targets = torch.tensor([[IGNORE, IGNORE, 0], [1, 1, 1]])
    assert pretrain.answer_loss(logits, targets, answers_weigh_alike=False).item() == pytest.approx(math.log(2) / 4)
    assert pretrain.answer_loss(logits, targets, answers_weigh_alike=True).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.slow
def test_a_few_steps_make_a_checkpoint(family, tmp_path, monkeypatch):
    steps = ["--scenes", "12", "--look_steps", "2", "--talk_steps", "2"]
    flags = ["--family", family.name, "--output_path", str(tmp_path / "m"), *steps]
    monkeypatch.setattr(sys, "argv", ["pretrain", *flags])
    monkeypatch.setattr(pretrain, "LOOK_BATCH", 8)
    monkeypatch.setattr(pretrain, "TALK_BATCH", 8)
    pretrain.main()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    start = {name: weight.bfloat16().float() for name, weight in family.model.state_dict().items()}
    moved = [name for name, weight in model.state_dict().items() if not torch.equal(weight.float(), start[name])]
    assert any("vision" in name or "visual" in name for name in moved)
    assert any("layers" in name and "vision" not in name and "visual" not in name for name in moved)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert AutoProcessor.from_pretrained(tmp_path / "m").tokenizer.eos_token == family.processor.tokenizer.eos_token
